"""One member of JSON objects set to a list of numbers as text, the rest of their bytes left as they are."""
