"""The formats on disk: a reader, a writer and a check for each. NumPy and Arrow only."""
