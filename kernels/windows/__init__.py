"""Sliding windows and last values per entity, over event time."""
