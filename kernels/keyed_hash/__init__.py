"""Keyed hashes of texts: HMAC-SHA-256, cut to 128 bits, as 32 hexadecimal digits. Without the key nobody can try values out."""
