"""The types that event schemas are made of. The schemas themselves live in the pipelines' files.

A schema is flat: one row per event, each field of one type. A field may belong to some kinds of event only (`on`), and
may be absent or null there (`optional`). `path` says where in the message it is, if not under its own name: "merchant.id".
Decoded, an event is a row of a record batch whose columns are `Schema.arrow()`; a field that does not belong to the row's
kind is null.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `max_bytes` bytes of UTF-8. Arrow: string."""

    on: tuple[str, ...] = ()
    optional: bool = False
    max_bytes: int = 1024
    path: str = ""
    secret: bool = False

    arrow = pa.string()


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in [low, high]. Arrow: float64."""

    low: float = -1e15
    high: float = 1e15
    on: tuple[str, ...] = ()
    optional: bool = False
    path: str = ""

    arrow = pa.float64()


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number in [low, high], written without point or exponent. Arrow: int64; string where it is secret."""

    low: int = -(2**53)
    high: int = 2**53
    on: tuple[str, ...] = ()
    optional: bool = False
    path: str = ""
    secret: bool = False

    @property
    def arrow(self) -> pa.DataType:
        return pa.string() if self.secret else pa.int64()


@dataclass(frozen=True, slots=True)
class Vector:
    """`width` finite numbers, each in [low, high], as an array or, with `text`, as one string of them between commas, of which
    one may stand at the end ("0.25,0.5,"). Arrow: fixed_size_list<float32>, rounded from float64.

    Raises ValueError for a width below 1.
    """

    width: int
    text: bool = False
    low: float = -3.4028235e38
    high: float = 3.4028235e38
    on: tuple[str, ...] = ()
    optional: bool = False
    path: str = ""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"Vector: expected a width of at least 1, got {self.width}")

    @property
    def arrow(self) -> pa.DataType:
        return pa.list_(pa.float32(), self.width)


@dataclass(frozen=True, slots=True)
class Time:
    """A point in time as RFC 3339 text in UTC ("2013-01-01T10:15:00Z"), in [after, before). Arrow: timestamp[us, UTC].

    `after` and `before` are ISO dates or times; without an offset they are UTC.
    """

    after: str = "1970-01-01"
    before: str = "2262-01-01"
    on: tuple[str, ...] = ()
    optional: bool = False
    path: str = ""

    arrow = pa.timestamp("us", tz="UTC")

    @property
    def bounds_us(self) -> tuple[int, int]:
        """The bounds in microseconds since 1970-01-01 UTC."""
        return _microseconds(self.after), _microseconds(self.before)


@dataclass(frozen=True, slots=True)
class Kind:
    """The field that says what kind of event this is: one of `values`. Arrow: dictionary of int8 codes, in this order."""

    values: tuple[str, ...]
    path: str = ""

    on = ()
    optional = False
    arrow = pa.dictionary(pa.int8(), pa.string())


Field = Text | Number | Integer | Vector | Time | Kind


@dataclass(frozen=True)
class Schema:
    """A flat event schema.

    Raises ValueError for a second Kind, or a field on a kind that the schema does not have.
    """

    name: str
    version: int
    fields: Mapping[str, Field]

    def __post_init__(self) -> None:
        kinds = [name for name, field in self.fields.items() if isinstance(field, Kind)]
        if len(kinds) > 1:
            raise ValueError(f"schema {self.name}: expected at most one Kind field, got {', '.join(kinds)}")
        known = set(self.kinds)
        for name, field in self.fields.items():
            if name.startswith("_"):
                raise ValueError(f"schema {self.name}: field {name}: a leading underscore is kept for provenance")
            for kind in field.on:
                if kind not in known:
                    raise ValueError(f"schema {self.name}: field {name} is on kind {kind!r}, expected one of {sorted(known)}")

    @property
    def kind(self) -> str | None:
        """The name of the Kind field, if there is one."""
        return next((name for name, field in self.fields.items() if isinstance(field, Kind)), None)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of event, in the order of their codes."""
        return next((field.values for field in self.fields.values() if isinstance(field, Kind)), ())

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secret fields."""
        return tuple(name for name, field in self.fields.items() if isinstance(field, Text | Integer) and field.secret)

    def arrow(self) -> pa.Schema:
        """The columns of a decoded batch, provenance left out."""
        return pa.schema([(name, field.arrow) for name, field in self.fields.items()])


def _microseconds(text: str) -> int:
    when = datetime.fromisoformat(text)
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int((when - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)
