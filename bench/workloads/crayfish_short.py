"""Crayfish's network answered with the stamp and the scores alone, without the echo."""

from bench.workloads.crayfish import pipeline, workload_

crayfish_short = pipeline("crayfish-points", "crayfish-scores", echo=False)
workload = workload_("crayfish_short", echo=False)
