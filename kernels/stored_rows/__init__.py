"""Rows of several feature views kept by the hash of their entity: read by a batch of events, written by who asked the store."""
