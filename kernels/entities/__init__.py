"""Which slot each entity has: a table that gives slots out and takes them back from idle entities."""
