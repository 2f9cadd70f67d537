"""What bench/faults.py proves with: a load, a job and its lives, faults, and the audit of all that came of it."""
