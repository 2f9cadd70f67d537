"""A value as Feast's protobuf messages hold it."""

from typing import Any


def number(value: Any) -> float:
    """The number in a feast.types.Value, NaN for null, for an empty one, and for None."""
    kind = value.WhichOneof("val") if value is not None else None
    return float("nan") if kind is None or kind == "null_val" else float(getattr(value, kind))
