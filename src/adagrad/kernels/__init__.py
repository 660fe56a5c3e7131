"""The compiled kernels, one module a machine or a shape of work."""
