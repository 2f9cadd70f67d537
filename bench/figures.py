"""A figure of a part: what was measured, several times, and what it should be."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NotRequired, ParamSpec, TypeVar

from typing_extensions import TypedDict

from bench.show import number

P = ParamSpec("P")
R = TypeVar("R")


class Figure(TypedDict):
    """Median and range over n turns. goal: the most it may be."""

    part: str
    what: str
    unit: str
    median: float
    min: float
    max: float
    n: int
    goal: NotRequired[float]


class WrongError(Exception):
    """Results that are not what they should be; there are no figures then."""


def figure(part: str, what: str, unit: str, values: Sequence[float], goal: float | None = None) -> Figure:
    """The figure of at least one value."""
    made: Figure = {
        "part": part,
        "what": what,
        "unit": unit,
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }
    if goal is not None:
        made["goal"] = goal
    return made


def shown(one: Figure) -> str:
    """A figure as a line."""
    reach = f"{number(one['min'])} to {number(one['max'])}" if one["n"] > 1 else "once"
    goal = f"   goal {number(one['goal'])}: {'met' if one['median'] <= one['goal'] else 'MISSED'}" if "goal" in one else ""
    return f"{one['part']:10} {one['what']:64} {number(one['median']):>9} {one['unit']:12} ({reach}){goal}"


def timed(call: Callable[P, R], *given: P.args, **named: P.kwargs) -> tuple[float, R]:
    """How many seconds a call takes, and what it returns."""
    started = time.perf_counter()
    made = call(*given, **named)
    return time.perf_counter() - started, made
