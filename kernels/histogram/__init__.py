"""Counts of values per bin and feature, with missing values apart: what drift is measured on."""
