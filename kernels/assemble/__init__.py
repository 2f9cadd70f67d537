"""What a network takes, from a raw matrix and hashes in one pass: numbers prepared, what is missing, one-hot codes, buckets."""
