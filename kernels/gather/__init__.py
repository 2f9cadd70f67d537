"""Rows of embedding tables by the codes of a matrix."""
