"""One reader for each source of raw data."""
