"""What a pipeline says of its features: plain descriptions, turned into columns by the other modules of this room."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

Aggregate = Literal["count", "sum", "mean", "min", "max", "std", "last", "age", "distinct", "rate", "decayed"]
Late = Literal["use", "drop"]
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
NOT_OF_NUMBERS = ("count", "rate", "distinct")


Stale = float | Literal["null", "median", "refuse"]


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


def _named(feature: str, name: str) -> None:
    if not name.isidentifier():
        raise ValueError(f"{feature}: expected a name for it, as name=, got {name!r}")


def _written(word: str, feature: Any) -> str:
    """As state says what it is of: the same whatever the class is called, so that a rename orphans nothing."""
    return f"{word}({', '.join(f'{each.name}={getattr(feature, each.name)!r}' for each in fields(feature))})"


@dataclass(frozen=True)
class Fields:
    """Columns of the event itself."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Derived:
    """A number made by an expression (features/expressions.py) from the event's columns, the stored ("view__feature") and
    streaming features, and the Derived before it."""

    name: str
    expression: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class Stored:
    """The features of a Feast FeatureService, named "view__feature".

    stale: what a feature is, by its name or its view's, where the store has nothing that is young enough: its row is older than
    the view's ttl, or the store does not answer and no row is held. "null"; a number; "median", that of the model's training
    data; or "refuse": the model is not asked, the policy's fallback decides, and the decision says `refused`. otherwise: what
    all others are. What the store knows to be missing is null in any case.
    """

    service: str
    stale: Mapping[str, Stale] = field(default_factory=dict, hash=False)
    otherwise: Stale = "null"


@dataclass(frozen=True)
class Window:
    """Aggregates of `value` per entity over a sliding window of event time, fed by the events that `where` picks.

    At an event at time t, [floor(t, tile) - over, t] up to and including the event before it (docs/features.md defines each
    aggregate). value: a column or an expression over columns; name: what it is called, where it is an expression. tile: by
    default that of `tile_seconds(over)`. late: whether an event in an earlier tile than its entity's newest one is used while
    that tile can still be seen, or dropped. half_life: of "decayed". Named "{name}_{aggregate}_{over}_by_{entity}". Raises
    ValueError, naming what is wrong, when it is made.
    """

    entity: str
    value: str
    over: str
    aggs: tuple[Aggregate, ...]
    where: str = "True"
    name: str = ""
    tile: str = ""
    late: Late = "use"
    half_life: str = ""

    def __post_init__(self) -> None:
        here = f"window of {self.value} over {self.over} by {self.entity}"
        _named(here, self.name or self.value)
        over, tile = seconds(self.over), self.tile_seconds
        if over % tile:
            raise ValueError(f"{here}: expected a multiple of its tile ({tile}s): give it another by tile=")
        unknown = [agg for agg in self.aggs if agg not in get_args(Aggregate)]
        if unknown or not self.aggs:
            got = ", ".join(unknown) or "none"
            raise ValueError(f"{here}: expected aggregates among {', '.join(get_args(Aggregate))}, got {got}")
        if self.late not in get_args(Late):
            raise ValueError(f'{here}: expected late to be "use" or "drop", got "{self.late}"')
        if ("decayed" in self.aggs) != bool(self.half_life):
            raise ValueError(f'{here}: expected "decayed" and half_life= together')
        if self.half_life and seconds(self.half_life) < tile:
            raise ValueError(f"{here}: expected a half_life of at least its tile ({tile}s), got {self.half_life}")

    def __repr__(self) -> str:
        return _written("Window", self)

    @property
    def tile_seconds(self) -> int:
        """The width of its tiles."""
        return seconds(self.tile) if self.tile else tile_seconds(seconds(self.over))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name or self.value}_{agg}_{self.over}_by_{self.entity}" for agg in self.aggs)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The value as what it is told by, then the code of `distinct`; one of them where one is enough."""
        kind: Literal["number", "presence"] = "presence" if set(self.aggs) <= set(NOT_OF_NUMBERS) else "number"
        plain = (Input(self.value, kind),) if set(self.aggs) != {"distinct"} else ()
        return (*plain, Input(self.value, "code")) if "distinct" in self.aggs else plain


@dataclass(frozen=True)
class Last:
    """The last known `values` of an entity, no older than `within`, from the events that `where` picks.

    Each value by itself: a null does not hide the value before it. A value is a column, or an expression, alone, with a name.
    Named "{value}_last_by_{entity}". Raises ValueError, naming what is wrong, when it is made.
    """

    entity: str
    values: tuple[str, ...]
    within: str
    where: str
    name: str

    def __init__(self, entity: str, *values: str, within: str, where: str = "True", name: str = "") -> None:
        object.__setattr__(self, "entity", entity)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "within", within)
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "name", name)
        here = f"last {', '.join(values)} by {entity}"
        if name and len(values) != 1:
            raise ValueError(f"{here}: expected one value for the name {name}, got {len(values)}")
        for value in values:
            _named(here, name or value)
        seconds(within)

    def __repr__(self) -> str:
        return _written("Last", self)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name or value}_last_by_{self.entity}" for value in self.values)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input(value, "number") for value in self.values)


Feature = Fields | Derived | Stored | Window | Last
Streaming = Window | Last


@dataclass(frozen=True)
class Push:
    """Streaming features of one entity, written to Feast through a push source of the Feast repo, so that others see them.

    Every so often, each entity's value as its latest decided event saw it, with that event's time; at most most_entities wait
    to be written. Raises ValueError, naming what is wrong, when it is made.
    """

    source: str
    features: tuple[str, ...]
    every: str = "10s"
    most_entities: int = 100_000

    def __post_init__(self) -> None:
        here = f"push to {self.source!r}"
        if not self.source or isinstance(self.features, str) or not self.features:
            raise ValueError(f"{here}: expected the name of a push source and a list of streaming features")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"{here}: expected each feature once, got {', '.join(self.features)}")
        if self.most_entities < 1:
            raise ValueError(f"{here}: expected most_entities of at least 1, got {self.most_entities}")
        seconds(self.every)


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
