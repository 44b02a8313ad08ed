"""The models that ours are compared with, one file each."""
