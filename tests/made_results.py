"""Result files made up for the tests of what reads them: shaped as the harness writes them, figures from a seeded generator."""

import random
from functools import cache
from typing import Any

from hdrh.histogram import HdrHistogram

COMMON: dict[str, Any] = {
    "format": 1,
    "made_at": "2026-07-01T12:00:00+00:00",
    "machine": {"cpu": "Xeon", "cores": 2, "memory_gb": 8, "os": "Linux 6.1", "python": "3.11.9"},
    "versions": {"headrace": "0.1.0", "bytewax": "0.21.1", "confluent-kafka": "2.16.1", "java": "17.0.12", "kafka": "4.3.1"},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "workload": {"name": "flights", "messages": 120_000, "bytes_mean": 145.0, "seed": 7},
    "settings": {
        "broker": "apache",
        "acks": "all",
        "idempotence": True,
        "linger_ms": 1,
        "compression": "none",
        "epoch_seconds": 0.25,
        "recovery": True,
        "workers": 1,
        "partitions": 1,
        "schedule": "poisson",
        "warmup_s": 15,
        "measured_s": 30,
    },
}
P50 = {"headrace": 3.4, "relay": 2.9, "quix": 11.0, "bare": 3.2, "kafka-streams": 6.0, "flink": 21.0, "bytewax+feast": 80.0}
SPEED = {"headrace": 190_000.0, "quix": 17_000.0, "bare": 105_000.0, "kafka-streams": 48_500.0, "flink": 49_200.0}
STAGES = {"event": 1.9, "features": 1.5, "batch": 0.2, "model": 0.6, "decision": 0.5, "sink": 0.9, "drift": 0.4}


@cache
def _drawn(p50: float, seed: int) -> tuple[dict[str, float], str]:
    draw = random.Random(seed)
    histogram = HdrHistogram(1, 60_000_000, 2)
    for _ in range(2_000):
        histogram.record_value(max(1, round(1000 * p50 * draw.lognormvariate(0, 0.45))), 10)
    at = {"p50": 50, "p90": 90, "p99": 99, "p999": 99.9, "max": 100}
    figures = {name: histogram.get_value_at_percentile(percentile) / 1000 for name, percentile in at.items()}
    return {**figures, "mean": histogram.get_mean_value() / 1000, "count": 20_000}, histogram.encode().decode()


def latency_run(system: str, turn: int, rate: float, p50: float, seed: int) -> dict[str, Any]:
    """A valid run with 20,000 lognormal latencies around p50 ms."""
    draw = random.Random(seed)
    figures, encoded = _drawn(p50, seed)
    return {
        **_counted(system, turn, rate),
        "generator": {"rate": rate, "late_p99_ms": 0.2, "late_max_ms": 1.4},
        "latency_ms": dict(figures),
        "broker_latency_ms": {name: value if name == "count" else value * 0.8 for name, value in figures.items()},
        "histogram": encoded,
        "throughput": None,
        "stages": {word: value * draw.uniform(0.95, 1.05) for word, value in STAGES.items()} if system == "headrace" else None,
    }


def latency(
    systems: tuple[str, ...] = ("headrace", "relay", "quix"),
    rates: tuple[float, ...] = (1000,),
    turns: int = 3,
    slower: float = 1.0,
) -> dict[str, Any]:
    """A latency file: every system at every rate, in turns; headrace `slower` times as slow."""
    runs = []
    for rate in rates:
        load = 1 + (rate / 60_000) ** 2
        for turn in range(turns):
            for system in systems:
                p50 = P50[system] * load * (1 + 0.03 * turn) * (slower if system == "headrace" else 1)
                runs.append(latency_run(system, turn, rate, p50, seed=turn * 100 + int(rate) + len(system)))
    return _file("latency", systems, runs)


def throughput(systems: tuple[str, ...] = ("headrace", "quix", "bare"), turns: int = 3, slower: float = 1.0) -> dict[str, Any]:
    """A throughput file: a full topic drained by every system in turns."""
    runs = []
    for turn in range(turns):
        for system in systems:
            speed = SPEED[system] * (1 + 0.02 * turn) / (slower if system == "headrace" else 1)
            run = {**_counted(system, turn, None), "generator": None, "latency_ms": None, "histogram": None}
            run["throughput"] = {"messages_per_s": speed, "crayfish_per_s": None, "seconds": 120_000 / speed}
            run["stages"] = dict(STAGES) if system == "headrace" else None
            runs.append(run)
    return _file("throughput", systems, runs)


def floor() -> dict[str, Any]:
    """A floor file: parts, their sum, what the whole takes, and the efficiency."""
    parts = {"consume": 1.1, "decode": 0.5, "features": 1.4, "model": 0.6, "encode": 0.3, "produce": 1.3}
    whole = _file("floor", (), [])
    whole["parts"] = [{"part": name, "us_per_event": value} for name, value in parts.items()]
    return {**whole, "sum_us": sum(parts.values()), "actual_us": 6.0, "efficiency": sum(parts.values()) / 6.0}


def features(slower: float = 1.0) -> dict[str, Any]:
    """A features file: a figure with a goal, one beside it, and one that was taken once."""
    ours = {
        "part": "cold",
        "what": "SQLite",
        "unit": "µs a row",
        "median": 14.0,
        "min": 12.5,
        "max": 15.0,
        "n": 5,
        "goal": 20.0,
    }
    ours |= {name: ours[name] * slower for name in ("median", "min", "max")}  # type: ignore[operator]
    beside = {"part": "cold", "what": "Feast's SDK", "unit": "µs a row", "median": 150.0, "min": 140.0, "max": 1600.0, "n": 5}
    share = {"part": "cold", "what": "share", "unit": "", "median": 0.1, "min": 0.1, "max": 0.1, "n": 1}
    return {**_file("features", (), []), "workload": {"name": "features"}, "figures": [ours, beside, share]}


def spoiled(run: dict[str, Any], why: str, **counts: int) -> dict[str, Any]:
    """The same run as one that lost or doubled: no figures, and why."""
    bare = {"latency_ms": None, "broker_latency_ms": None, "histogram": None, "throughput": None, "stages": None}
    return {**run, **bare, **counts, "valid": False, "why_not": why}


def _counted(system: str, turn: int, rate: float | None) -> dict[str, Any]:
    counts = {"sent": 120_000, "expected": 40_000, "answers": 40_000, "lost": 0, "doubled": 0, "wrong": 0}
    cpu = {"system": 0.8, "broker": 0.5, "generator": 0.1, "collector": 0.1}
    held = {"system": system, "turn": turn, "rate": rate, "valid": True, "why_not": None, **counts, "cpu": cpu}
    return {**held, "memory_mb": {"system": 300.0}, "batch_rows": {"mean": 12.0}, "lag": None}


def _file(kind: str, systems: tuple[str, ...], runs: list[dict[str, Any]]) -> dict[str, Any]:
    commands = {name: {"command": f"{name} --brokers {{brokers}} --in {{input}}", "settings": {}} for name in systems}
    command = ["python", "-m", f"bench.{kind}", "--workload", "flights", "--json", f"{kind}.json"]
    return {**COMMON, "kind": kind, "command": command, "systems": commands, "runs": runs}
