"""Lists of decimal numbers in messages to a matrix of float32."""
