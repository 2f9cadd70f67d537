"""Arithmetic on arrays, nothing else."""
