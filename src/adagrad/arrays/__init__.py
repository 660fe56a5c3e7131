"""What the engine asks of an array, one module a kind of array."""
