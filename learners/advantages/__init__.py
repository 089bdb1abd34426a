"""Advantages: turn rewards of a group in, one number per turn out. NumPy and Arrow."""
