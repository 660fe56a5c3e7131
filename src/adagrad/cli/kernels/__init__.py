"""The compiled loops of the command line; each file is whole, so that its cache is stale when, and only when, it changes."""
