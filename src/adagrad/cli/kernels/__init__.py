"""The compiled loops of the command line."""
