"""What `methods.py` compares, and its tables."""
