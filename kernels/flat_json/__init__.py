"""Flat JSON objects to columns: one object per message, each field of one type, as a list of `Field` says."""

from dataclasses import dataclass
from typing import Literal

Type = Literal["text", "number", "integer", "time", "kind", "vector"]


@dataclass(frozen=True, slots=True)
class Field:
    """What one field of the object has to be.

    text: at most `high` bytes of UTF-8. number: float64 in [low, high]. integer: int64 in [low, high]. time: microseconds
    since 1970-01-01 UTC in [low, high). kind: one of `values`, decoded to its place among them. on: the kinds, by their
    place, whose messages have the field; empty: all. optional: may be absent or null there. vector: `width` numbers, each in
    [low, high] as float64 and then rounded to float32, as an array or, as_text, as one string of them between commas, of which
    one may stand at the end. path: where in the message the field is, names between dots; its own name if none is given.
    """

    name: str
    type: Type
    low: float = 0
    high: float = 0
    on: tuple[int, ...] = ()
    optional: bool = False
    values: tuple[str, ...] = ()
    width: int = 0
    as_text: bool = False
    path: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        """The names on the way to the field."""
        return tuple(self.path.split(".")) if self.path else (self.name,)
