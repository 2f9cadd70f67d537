"""An open-addressing table from 64-bit hashes to slots 0, 1, 2, ... in the order of first insertion."""
