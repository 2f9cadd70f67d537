"""What was served beside what is computed again: how many values agree, feature by feature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

TOLERANCE = 1e-5
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Skew:
    """Of one feature, over the `rows` decisions that it was asked for in: how many values match, mismatch, are missing
    (computed again there is one) or extra (there is none); other_row: stored values of another row than a training frame has,
    and right for it; substituted: given by the pipeline in place of a stale or unread row, and not compared.

    smape: the mean of 2·|served − again| / (|served| + |again|) where both are finite, 0 to 2; null for what is no number.
    largest: the largest |served − again| there. first: of the decisions that do not match, the id (empty: there is none), and
    what was served and computed again.
    """

    feature: str
    rows: int
    match: int
    mismatch: int
    missing: int
    extra: int
    other_row: int
    substituted: int
    smape: float | None
    largest: float | None
    first: str = ""
    served: str | float | None = None
    again: str | float | None = None

    @property
    def skewed(self) -> int:
        """How many values are not what they should be."""
        return self.mismatch + self.missing + self.extra


def compare(
    name: str,
    served: pl.Series,
    again: pl.Series,
    ids: pl.Series,
    *,
    substituted: Bools | None = None,
    own_row: pl.Series | None = None,
    tolerance: float = TOLERANCE,
) -> Skew:
    """The skew of a feature: values served and computed again [n], numbers or texts, null where there is none; ids [n].

    Numbers agree within tolerance · max(1, |again|), compared as float32, as they are served. own_row: the values [n] that the
    stored row that was held has. Raises ValueError for a feature that is a number on one side and a text on the other.
    """
    n = len(served)
    served, again = (each.cast(pl.Float32) if each.dtype == pl.Boolean else each for each in (served, again))
    if served.dtype.is_numeric() != again.dtype.is_numeric():
        raise ValueError(f"feature {name}: served as {served.dtype}, computed again as {again.dtype}")
    compared = np.ones(n, np.bool_) if substituted is None else ~substituted
    there, expected = served.is_not_null().to_numpy(), again.is_not_null().to_numpy()
    both = there & expected & compared
    smape = largest = None
    if served.dtype.is_numeric():
        a, b = numbers(served), numbers(again)
        equal = close(a, b, tolerance)
        finite = both & np.isfinite(a) & np.isfinite(b)
        if finite.any():
            apart, size = np.abs(a[finite] - b[finite]), np.abs(a[finite]) + np.abs(b[finite])
            smape = float(np.mean(np.divide(2 * apart, size, out=np.zeros_like(apart), where=size > 0)))
            largest = float(apart.max())
    else:
        equal = served.eq_missing(again).to_numpy()
    agree = (both & equal) | (compared & ~there & ~expected)
    other = np.zeros(n, np.bool_)
    if own_row is not None:
        other = compared & there & ~agree & close(numbers(served), numbers(own_row), tolerance)
    wrong = compared & ~agree & ~other
    at = int(np.argmax(wrong)) if wrong.any() else -1
    return Skew(
        name,
        n,
        int(agree.sum()),
        int((wrong & there & expected).sum()),
        int((wrong & ~there).sum()),
        int((wrong & ~expected).sum()),
        int(other.sum()),
        n - int(compared.sum()),
        smape,
        largest,
        *((ids[at], served[at], again[at]) if at >= 0 else ()),
    )


def numbers(column: pl.Series) -> npt.NDArray[np.float64]:
    """A column as the float32 that a model is given, in float64; NaN for null."""
    return column.cast(pl.Float32).cast(pl.Float64).fill_null(float("nan")).to_numpy()


def close(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], tolerance: float) -> Bools:
    """Where numbers agree; never where one is missing."""
    with np.errstate(invalid="ignore"):
        return (a == b) | (np.abs(a - b) <= tolerance * np.maximum(1.0, np.abs(b)))


def skews(
    served: pl.DataFrame,
    again: pl.DataFrame,
    columns: Mapping[str, str],
    *,
    asked: Mapping[str, Bools],
    substituted: Mapping[str, Bools],
    own_rows: Mapping[str, pl.Series],
    tolerance: float = TOLERANCE,
) -> list[Skew]:
    """The skew of each feature, from rows of the same decisions. columns: where `served` has it, by name. asked: the decisions
    that it was asked for in; the others are none of its rows."""
    found = []
    for name, column in columns.items():
        rows = asked[name]
        given, own = substituted.get(name), own_rows.get(name)
        skew = compare(
            name,
            served[column].filter(rows),
            again[name].filter(rows),
            served["decision_id"].filter(rows),
            substituted=None if given is None else given[rows],
            own_row=None if own is None else own.filter(rows),
            tolerance=tolerance,
        )
        found.append(skew)
    return found


def total(found: Sequence[Skew]) -> int:
    """How many values of all features are skewed."""
    return sum(one.skewed for one in found)
