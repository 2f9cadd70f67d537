"""Rows of Feast's online stores in the bytes that the stores keep: protobuf messages of one value each."""
