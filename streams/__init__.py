"""The dataflows: sources, decoding, and the Pipeline that wires the rooms together."""
