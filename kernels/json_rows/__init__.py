"""Rows of text from columns and constant pieces, in one pass: JSON objects written without a Python object per value."""
