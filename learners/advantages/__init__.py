"""Advantages: turn rewards of a group in, one number a turn out. Pure NumPy."""
