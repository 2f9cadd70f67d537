"""A pipeline on a cluster: its image, its chart, and what puts them there."""
