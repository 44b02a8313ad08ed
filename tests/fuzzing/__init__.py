"""What `fuzz.py` mutates, a module a kind."""
