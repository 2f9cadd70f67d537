"""What a pipeline says of its features: plain descriptions, turned into columns by the other modules of this room."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

Aggregate = Literal["count", "sum", "mean", "min", "max"]
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
NOT_OF_NUMBERS = ("count", "rate", "distinct")


class Input(NamedTuple):
    """A value that a streaming feature takes of an event: `value` a column or an expression, as a "number", as a "code" that
    tells different values apart, or only whether it is there, "presence"."""

    value: str
    kind: Literal["number", "code", "presence"]


def seconds(text: str) -> int:
    """The seconds of "90s", "5m", "2h" or "1d". Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if not match or int(match[1]) == 0:
        raise ValueError(f'expected a duration such as "90s", "5m", "2h" or "1d", got "{text}"')
    return int(match[1]) * UNITS[match[2]]


def tile_seconds(window: int) -> int:
    """The width of a window's tiles: the largest whole unit (second, minute, hour, day) <= window / 120, at least a second."""
    return max((unit for unit in UNITS.values() if unit <= window / 120), default=1)


@dataclass(frozen=True)
class Fields:
    """Columns of the event itself."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Derived:
    """A number made from the event's columns by an expression (features/expressions.py)."""

    name: str
    expression: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class Stored:
    """The features of a Feast FeatureService, named "view__feature"."""

    service: str


@dataclass(frozen=True)
class Window:
    """Aggregates of `value` per entity over a sliding window of event time, fed by the events that `where` picks.

    At an event at time t, [floor(t, tile) - over, t] up to and including the event before it, with tiles of
    `tile_seconds(over)`. Named "{value}_{aggregate}_{over}_by_{entity}". Empty windows give count and sum 0, the rest null.
    """

    entity: str
    value: str
    over: str
    aggs: tuple[Aggregate, ...]
    where: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.value}_{agg}_{self.over}_by_{self.entity}" for agg in self.aggs)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The value as what it is told by, then the code of `distinct`; one of them where one is enough."""
        kind: Literal["number", "presence"] = "presence" if set(self.aggs) <= set(NOT_OF_NUMBERS) else "number"
        plain = (Input(self.value, kind),) if set(self.aggs) != {"distinct"} else ()
        return (*plain, Input(self.value, "code")) if "distinct" in self.aggs else plain


@dataclass(frozen=True)
class Last:
    """The last known `values` of an entity, no older than `within`, from the events that `where` picks.

    Each value by itself: a null does not hide the value before it. Named "{value}_last_by_{entity}".
    """

    entity: str
    values: tuple[str, ...]
    within: str
    where: str

    def __init__(self, entity: str, *values: str, within: str, where: str) -> None:
        object.__setattr__(self, "entity", entity)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "within", within)
        object.__setattr__(self, "where", where)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{value}_last_by_{self.entity}" for value in self.values)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input(value, "number") for value in self.values)


Feature = Fields | Derived | Stored | Window | Last
Streaming = Window | Last


@dataclass(frozen=True)
class Label:
    """What came true: `value` of the event that `where` picks with the same `join` as the decided one, within a time.

    `absent` is the label of a decided event for which no such event comes in that time.
    """

    join: str
    value: str
    where: str
    within: str
    absent: bool
