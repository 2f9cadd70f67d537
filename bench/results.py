"""The result file that every bench command writes and every report reads: its shape, its reading, its summary.

One JSON object, `"format": 1`. Latencies are in ms, histograms hold µs, stages are µs per event, CPU is in cores, memory in MB.
A run that lost, doubled or wrongly answered anything, or whose generator fell behind, is kept with `valid: false` and `why_not`
and has no figures: `read` refuses a file in which such a run has any.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

FORMAT = 1
OURS = "headrace"
STAGES = ("event", "features", "batch", "model", "decision", "sink", "drift")
PARTS = ("consume", "decode", "features", "model", "encode", "produce")
LATENCY = ("p50", "p90", "p99", "p999", "max", "mean")
FIGURES = ("latency_ms", "broker_latency_ms", "histogram", "throughput", "stages")

Kind = Literal["latency", "throughput", "floor", "features"]
open_dict = with_config(ConfigDict(extra="allow", strict=False, allow_inf_nan=False))


class ResultError(ValueError):
    """A result file that cannot be used: names the file, the field, what was expected and what was found."""


@open_dict
class Latency(TypedDict):
    """Percentiles in ms over `count` answers."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    mean: float
    count: int


@open_dict
class Throughput(TypedDict):
    """messages_per_s by the broker's append times over `seconds`; crayfish_per_s by Crayfish's own formula."""

    messages_per_s: float
    crayfish_per_s: NotRequired[float | None]
    seconds: NotRequired[float | None]


@open_dict
class Generator(TypedDict):
    """What the generator reached: messages a second, and how late it sent against its schedule."""

    rate: NotRequired[float | None]
    late_p99_ms: NotRequired[float | None]
    late_max_ms: NotRequired[float | None]


def _without_figures(run: "Run") -> "Run":
    if not run["valid"]:
        if not run.get("why_not"):
            raise ValueError("expected why_not to say why the run is not valid, got nothing")
        has = [name for name in FIGURES if cast(Mapping[str, Any], run).get(name) is not None]
        if has:
            raise ValueError(f"expected no figures in a run that is not valid ({run.get('why_not')}), got {', '.join(has)}")
    return run


@open_dict
class Run(TypedDict):
    """One system, once, at one rate (null where it drains a full topic), in turn number `turn`."""

    system: str
    turn: int
    rate: NotRequired[float | None]
    valid: bool
    why_not: NotRequired[str | None]
    sent: NotRequired[int | None]
    expected: NotRequired[int | None]
    answers: NotRequired[int | None]
    lost: NotRequired[int | None]
    doubled: NotRequired[int | None]
    wrong: NotRequired[int | None]
    generator: NotRequired[Generator | None]
    latency_ms: NotRequired[Latency | None]
    broker_latency_ms: NotRequired[Latency | None]
    histogram: NotRequired[str | None]
    throughput: NotRequired[Throughput | None]
    stages: NotRequired[dict[str, float] | None]
    batch_rows: NotRequired[dict[str, float] | None]
    cpu: NotRequired[dict[str, float | None] | None]
    memory_mb: NotRequired[dict[str, float | None] | None]
    lag: NotRequired[dict[str, float | None] | None]


@open_dict
class Spread(TypedDict):
    """Median and range over `n` valid runs."""

    median: float
    min: float
    max: float
    n: int


class Summary(TypedDict):
    """By system and metric; `ratios` is headrace over each other system, turn by turn."""

    systems: dict[str, dict[str, Spread]]
    ratios: dict[str, dict[str, Spread]]


@open_dict
class Part(TypedDict):
    """One part of the floor, alone."""

    part: str
    us_per_event: float


@open_dict
class Measured(TypedDict):
    """A figure of a part of `bench.features`: median and range over n turns, always the less the better."""

    part: str
    what: str
    unit: str
    median: float
    min: float
    max: float
    n: int
    goal: NotRequired[float | None]


@open_dict
class Workload(TypedDict):
    """What was sent."""

    name: str
    messages: NotRequired[int | None]
    bytes_mean: NotRequired[float | None]
    seed: NotRequired[int | None]


@open_dict
class System(TypedDict):
    """A system's command line and what is set on it alone."""

    command: str
    settings: NotRequired[dict[str, Any] | None]


@open_dict
class Result(TypedDict):
    """A whole result file."""

    format: Literal[1]
    kind: Kind
    made_at: str
    command: list[str]
    machine: dict[str, Any]
    versions: dict[str, str | None]
    commit: str
    dirty: bool
    workload: Workload
    settings: dict[str, Any]
    systems: NotRequired[dict[str, System]]
    runs: NotRequired[list[Annotated[Run, AfterValidator(_without_figures)]]]
    parts: NotRequired[list[Part]]
    sum_us: NotRequired[float]
    actual_us: NotRequired[float | None]
    efficiency: NotRequired[float | None]
    figures: NotRequired[list[Measured]]


_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


def read(path: Path) -> Result:
    """The result in a file; ResultError (file, field, expected, got) if it is none. `summary` is made anew from the runs."""
    try:
        held = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultError(f"{path}: expected a result file, got {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path}: expected JSON, got {error}") from error
    return check(held, str(path))


def check(held: object, name: str = "result") -> Result:
    """The same for what is already in memory; `name` stands for the file in errors."""
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        got = held.get("format", "none") if isinstance(held, dict) else type(held).__name__
        raise ResultError(f"{name}: format: expected {FORMAT}, got {got}")
    try:
        result = _RESULT.validate_python(held)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"]).lstrip(".") or "the whole"
        if first["type"] == "value_error":
            raise ResultError(f"{name}: {field}: {first['msg'].removeprefix('Value error, ')}") from error
        got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise ResultError(f"{name}: {field}: {_expected(first)}, got {got}") from error
    if result["kind"] == "floor":
        if not result.get("parts"):
            raise ResultError(f"{name}: parts: expected the floor's parts, got nothing")
        return result
    if result["kind"] == "features":
        if not result.get("figures"):
            raise ResultError(f"{name}: figures: expected the figures of at least one part, got nothing")
        return result
    wanted = "latency_ms" if result["kind"] == "latency" else "throughput"
    seen: set[tuple[str, int, float | None]] = set()
    for number, run in enumerate(result.get("runs", [])):
        turn = (run["system"], run["turn"], run.get("rate"))
        if turn in seen:
            raise ResultError(f"{name}: runs[{number}]: expected one run a system, turn and rate, got a second of {turn}")
        seen.add(turn)
        if run["valid"] and cast(Mapping[str, Any], run).get(wanted) is None:
            raise ResultError(f"{name}: runs[{number}].{wanted}: expected the figures of a valid run, got nothing")
    if "runs" not in result:
        raise ResultError(f"{name}: runs: expected a list of runs, got nothing")
    return result


def figures(run: Run) -> dict[str, float]:
    """The metrics of a run, flat: p50 to mean, broker_p50 to broker_mean, messages_per_s, cpu, ...; none if it is invalid."""
    if not run["valid"]:
        return {}
    flat: dict[str, float | None] = {}
    for field, prefix in (("latency_ms", ""), ("broker_latency_ms", "broker_")):
        held = cast(Mapping[str, Any], run).get(field) or {}
        flat |= {prefix + name: held.get(name) for name in LATENCY}
    speed = run.get("throughput") or cast(Throughput, {})
    flat |= {"messages_per_s": speed.get("messages_per_s"), "crayfish_per_s": speed.get("crayfish_per_s")}
    flat |= {"cpu": (run.get("cpu") or {}).get("system"), "memory_mb": (run.get("memory_mb") or {}).get("system")}
    return {name: float(value) for name, value in flat.items() if value is not None}


def spread(values: Iterable[float]) -> Spread:
    """Median, smallest, largest and number of at least one value."""
    held = sorted(values)
    return {"median": float(median(held)), "min": float(held[0]), "max": float(held[-1]), "n": len(held)}


def summarise(runs: Iterable[Run], ours: str = OURS) -> Summary:
    """Median and range over the valid runs of each system, and of `ours` over each other system, turn by turn.

    With runs at several rates the metrics are named with theirs: "p50@1000". A turn in which either of the two has no valid run
    gives no ratio.
    """
    runs = list(runs)
    several = len({run.get("rate") for run in runs}) > 1
    by_turn: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        metrics = by_turn.setdefault(run["system"], {})
        rate = run.get("rate")
        suffix = f"@{rate:.12g}" if several and rate is not None else ""
        for name, value in figures(run).items():
            metrics.setdefault(name + suffix, {})[run["turn"]] = value
    systems = {system: {name: spread(turns.values()) for name, turns in metrics.items()} for system, metrics in by_turn.items()}
    ratios: dict[str, dict[str, Spread]] = {}
    for system, metrics in by_turn.items():
        if system == ours or ours not in by_turn:
            continue
        ratios[system] = {}
        for name, turns in metrics.items():
            mine = by_turn[ours].get(name, {})
            pairs = [mine[turn] / value for turn, value in turns.items() if turn in mine and value > 0]
            if pairs:
                ratios[system][name] = spread(pairs)
    return {"systems": systems, "ratios": ratios}


def _expected(error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "expected a value"
    said = str(error["msg"])
    return "expected " + said.removeprefix("Input should be ").replace("a valid ", "a ")
