"""The last known values of entities."""
