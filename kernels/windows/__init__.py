"""Aggregates over sliding windows of event time, per entity."""
