"""What a network takes, one row after another, and the plan of it. kernels/assemble/naive.py is the definition."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]
NUMBER, MISSING, ONE_HOT, BUCKET = range(4)
FILL, LOW, HIGH, LOG, MEAN, SCALE = range(6)
KINDS, VALUES = 4, 6
AS_IT_IS = (0.0, -math.inf, math.inf, 0.0, 0.0, 1.0)
"""Of a number that stays as it is, or becomes 0 for NaN."""
MOST_BUCKETS = 2**24
"""Each is exact in float32."""
ZERO, ONE = np.uint64(0), np.uint64(1)
U = np.uint64


class Column(NamedTuple):
    """One column of what a network takes.

    source: a column of the matrix, or, of a BUCKET, a row of the hashes. place: the code that a ONE_HOT column stands for, or
    how many buckets there are, else 0. values: of a NUMBER its fill, low, high, log (0 or 1), mean and scale.
    """

    kind: int
    source: int
    place: int = 0
    values: tuple[float, ...] = AS_IT_IS


class Plan(NamedTuple):
    """The P columns as arrays: kinds, sources and places int32 [P], values float32 [P, 6]."""

    kinds: I32
    sources: I32
    places: I32
    values: F32


def plan(columns: Sequence[Column]) -> Plan:
    """The plan of these columns, from left to right."""
    return Plan(
        np.array([each.kind for each in columns], np.int32),
        np.array([each.source for each in columns], np.int32),
        np.array([each.place for each in columns], np.int32),
        np.array([each.values for each in columns], np.float32).reshape(-1, VALUES),
    )


def check(plan: Plan, columns: int, hashes: int) -> None:
    """Raises ValueError, naming the output column, for what the kernels cannot do with a matrix of so many columns and so many
    rows of hashes: an unknown kind, a source that is not there, fewer than 2 buckets or more than 2**24, a code beyond them,
    values of a number that are NaN, a scale of 0. The kernels trust a plan.
    """
    for p, kind in enumerate(plan.kinds.tolist()):
        source, place, values = int(plan.sources[p]), int(plan.places[p]), plan.values[p]
        where = f"assemble: column {p}: expected"
        if not 0 <= kind < KINDS:
            raise ValueError(f"{where} a kind from 0 to {KINDS - 1}, got {kind}")
        if not 0 <= source < (hashes if kind == BUCKET else columns):
            what = f"rows of hashes, of {hashes}" if kind == BUCKET else f"columns of the matrix, of {columns}"
            raise ValueError(f"{where} a source among the {what}, got {source}")
        if kind == BUCKET and not 2 <= place <= MOST_BUCKETS:
            raise ValueError(f"{where} 2 to {MOST_BUCKETS} buckets, got {place}")
        if kind == ONE_HOT and not 0 <= place < MOST_BUCKETS:
            raise ValueError(f"{where} a code from 0 to {MOST_BUCKETS - 1}, got {place}")
        if kind == NUMBER and (np.isnan(values).any() or values[SCALE] == 0):
            raise ValueError(f"{where} values without NaN and a scale other than 0, got {values.tolist()}")


@njit(cache=True, nogil=True)
def assemble(matrix: F32, hashes: U64, kinds: I32, sources: I32, places: I32, values: F32, out: F32) -> None:
    """Fills out float32 [n, P] from matrix float32 [n, K], NaN for missing, and hashes uint64 [H, n], 0 for null, by a plan."""
    for i in range(len(out)):
        for p in range(len(kinds)):
            kind, source = kinds[p], U(sources[p])
            if kind == BUCKET:
                h = hashes[source, i]
                out[i, p] = np.float32(ONE + h % U(places[p] - 1)) if h != ZERO else np.float32(0)
                continue
            x = matrix[i, source]
            if kind == NUMBER:
                y = values[p, FILL] if np.isnan(x) else x
                y = min(max(y, values[p, LOW]), values[p, HIGH])
                if values[p, LOG] != 0:
                    y = math.copysign(math.log1p(abs(y)), y)
                out[i, p] = (y - values[p, MEAN]) / values[p, SCALE]
            elif kind == MISSING:
                out[i, p] = 1 if np.isnan(x) else 0
            else:
                out[i, p] = 1 if x == places[p] else 0
