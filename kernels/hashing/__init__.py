"""Stable 64-bit hashes of entities. The same bytes hash the same on every machine and in every version: shards depend on it."""
