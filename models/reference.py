"""What the model's inputs and scores looked like in training, kept per day, and when a day of the stream is too far from it.

Days of one month share their weather, so rows are far from independent and days are not independent either. The null
distribution of every statistic therefore comes from the reference's own days, each compared with the reference without
its whole block (a calendar month): a new month is what the reference has not seen, too. See `Reference.thresholds`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save

from kernels.drift_statistics import kolmogorov_smirnov, missing_difference, psi
from kernels.histogram.cpu import histogram

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

VERSION = 1
DAY_US = 86_400_000_000
SCORE = "score"
STATISTICS = ("psi", "ks", "missing")
NEGLIGIBLE = np.array([0.02, 0.02, 0.01])
USUAL = 0.9
OUT_OF_LINE = 3.0


class Judgement(NamedTuple):
    """What a window's histograms say, one entry per feature and statistic, feature by feature: each of length (F+1) * S."""

    feature: list[str]
    statistic: list[str]
    value: F64
    threshold: F64
    alarmed: npt.NDArray[np.bool_]


class ReferenceTooShortError(ValueError):
    """The training data spans too few days to say what is usual from day to day."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A model's reference: F inputs and the score, D days, B bins.

    names [F+1] (the score last) and categorical [F+1]; edges f32 [F+1, B-1] (padded with +inf); days i64 [D], days since
    1970-01-01 UTC, ascending; counts i64 [D, F+1, B+1], the last column missing values; null f64 [D, F+1, S], the
    statistics of each day against the days of all other blocks.
    """

    names: tuple[str, ...]
    categorical: tuple[bool, ...]
    edges: F32
    days: I64
    counts: I64
    null: F64

    @cached_property
    def total(self) -> I64:
        """The counts over all days, [F+1, B+1]."""
        return self.counts.sum(0)

    @cached_property
    def rows_a_day(self) -> int:
        """The median number of rows in a day."""
        return int(np.median(self.counts[:, 0].sum(-1)))

    @cached_property
    def identity(self) -> str:
        """Names and edges as 16 hex digits: counts of two references can be added if these are the same."""
        return hashlib.sha256("\0".join(self.names).encode() + self.edges.tobytes()).hexdigest()[:16]

    def count(self, matrix: F32, scores: F32) -> I64:
        """Counts [F+1, B+1] of matrix f32 [n, F] and scores f32 [n]."""
        counts = np.zeros((len(self.names), self.edges.shape[1] + 2), np.int64)
        histogram(_with_score(matrix, scores), self.edges, counts)
        return counts

    def thresholds(self, rate: float) -> F64:
        """Thresholds [F+1, S] such that anything at all alarms in a share `rate` of the days, 0 < rate < 1.

        A statistic's scale is what is usual for it, the 90% quantile over a month's days, in its worst month. How far a day is
        out is its largest statistic in scales, over all features and statistics, so that their number and their dependence
        are accounted for; a day is measured in the scales of the other months, as a day to come will be. The thresholds are
        the scales times the (1 - rate) quantile of the days' farthest, the order statistic ceil((D + 1)(1 - rate)) that
        holds for exchangeable days whatever the distribution (conformal prediction; Vovk, Gammerman, Shafer,
        "Algorithmic Learning in a Random World", 2005). Leaving out folds in turn costs at most a factor of two in the rate
        where the folds are exchangeable (Barber, Candes, Ramdas, Tibshirani, "Predictive inference with the jackknife+",
        Annals of Statistics 49, 2021); months are not quite, and `python -m bench.drift` measures what holds. For rates
        below 1 / (D + 1) the tail is taken to fall as a power (Weissman, "Estimation of parameters and large quantiles
        based on the k largest observations", JASA 73, 1978), with Hill's estimate of it from the largest tenth.

        PSI grows with the square of a shift, the others in proportion: it counts by its root. A statistic smaller than
        NEGLIGIBLE is never far out. A scale without a month is at least a third of the scale with it, lest one month out of
        line (a feed that was down) blinds every other feature.
        """
        if not 0 < rate < 1:
            raise ValueError(f"drift: expected a rate between 0 and 1, got {rate}")
        far = _in_proportion(self.null)
        floor = _in_proportion(NEGLIGIBLE)
        block = blocks(self.days)
        usual = np.stack([np.quantile(far[block == b], USUAL, axis=0) for b in np.unique(block)])
        scale = np.maximum(usual.max(0), floor)
        out = np.empty(len(far))
        for place, b in enumerate(np.unique(block)):
            others = np.maximum(np.delete(usual, place, 0).max(0), floor)
            out[block == b] = (far[block == b] / np.maximum(others, scale / OUT_OF_LINE)).max((1, 2))
        limit = scale * _upper_quantile(out, rate)
        return np.concatenate([limit[:, :1] ** 2, limit[:, 1:]], axis=1)

    def save(self, folder: Path) -> None:
        """Writes reference.safetensors and reference.json."""
        arrays = {"edges": self.edges, "days": self.days, "counts": self.counts, "null": self.null}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        (folder / "reference.safetensors").write_bytes(content)
        words = {
            "version": VERSION,
            "statistics": STATISTICS,
            "names": self.names,
            "categorical": self.categorical,
        }
        (folder / "reference.json").write_text(json.dumps(words, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Reads what `save` wrote. Raises ValueError for another version."""
        words = json.loads((folder / "reference.json").read_text())
        got = (words["version"], tuple(words["statistics"]))
        if got != (VERSION, STATISTICS):
            raise ValueError(f"{folder}/reference.json: expected version and statistics {(VERSION, STATISTICS)}, got {got}")
        arrays = load_file(folder / "reference.safetensors")
        return cls(tuple(words["names"]), tuple(words["categorical"]), **arrays)


def build_reference(
    names: Sequence[str],
    categorical: Sequence[bool],
    matrix: F32,
    scores: F32,
    times_us: I64,
    bins: int = 20,
    min_rows: int = 100,
) -> Reference:
    """The reference of a model's inputs matrix f32 [n, F] and scores f32 [n] at times_us i64 [n] (microseconds UTC), any order.

    Numbers get edges from their quantiles, categories (codes: 0 unknown, then by falling frequency) one bin a code with
    the tail in the last one. Hashed inputs are cut as numbers are: the order of their codes means nothing, but a value that
    becomes more or less frequent is seen, unless another one of its bin makes up for it. The first and the last day are left
    out if they have less than half the usual rows, as are days of less than min_rows rows, and the days before every feature
    has been seen: a feature that began within the first half of the days (a history that had yet to be made) is measured from
    the first whole day that has it.
    Raises ReferenceTooShortError for fewer than 14 days after that, ValueError for shapes that do not fit.
    """
    fit = scores.ndim == 1 and matrix.shape == (len(scores), len(names)) and len(times_us) == len(scores)
    if not fit or len(categorical) != len(names):
        raise ValueError(
            f"reference: expected a matrix of {len(scores)} rows (scores) and {len(names)} columns (names), as many times and "
            f"flags; got {matrix.shape}, {len(times_us)} times, {len(categorical)} flags"
        )
    table = _with_score(matrix, scores)
    of_row = times_us // DAY_US
    days = _whole_days(table, of_row, min_rows)
    if len(days) < 14:
        raise ReferenceTooShortError(f"reference: expected at least 14 whole days of training data, got {len(days)}")
    kept = np.isin(of_row, days)
    table, of_row = table[kept], of_row[kept]
    flags = (*categorical, False)
    edges = np.full((len(flags), bins - 1), np.inf, np.float32)
    for feature, is_category in enumerate(flags):
        found = _edges(table[:, feature], is_category, bins)
        edges[feature, : len(found)] = found
    counts = np.zeros((len(days), len(flags), bins + 1), np.int64)
    for place, day in enumerate(days):
        histogram(table[of_row == day], edges, counts[place])
    return Reference((*names, SCORE), flags, edges, days, counts, null_statistics(days, counts))


def null_statistics(days: I64, counts: I64) -> F64:
    """Statistics [D, F+1, S] of each day against the days of all other blocks. days [D], counts [D, F+1, B+1]."""
    total = counts.sum(0)
    block = blocks(days)
    null = np.empty((*counts.shape[:2], len(STATISTICS)))
    for b in np.unique(block):
        null[block == b] = statistics(total - counts[block == b].sum(0), counts[block == b])
    return null


def statistics(reference: I64, window: I64) -> F64:
    """All statistics [..., S] of counts [..., B+1], in the order of STATISTICS."""
    each = [psi(reference, window), kolmogorov_smirnov(reference, window), missing_difference(reference, window)]
    return np.stack(each, axis=-1)


def blocks(days: I64) -> I64:
    """The block of each day [D]: its calendar month if there are four or more, else one of four equal runs of days."""
    month = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    if len(np.unique(month)) >= 4:
        return month
    return np.arange(len(days)) * 4 // len(days)


def judge(reference: Reference, counts: I64, thresholds: F64) -> Judgement:
    """What a window's counts [F+1, B+1] say by thresholds [F+1, S]: alarmed is a value above its threshold."""
    value = statistics(reference.total, counts)
    return Judgement(
        feature=[name for name in reference.names for _ in STATISTICS],
        statistic=list(STATISTICS) * len(reference.names),
        value=value.ravel(),
        threshold=thresholds.ravel(),
        alarmed=(value > thresholds).ravel(),
    )


def _with_score(matrix: F32, scores: F32) -> F32:
    return np.column_stack([matrix, scores]).astype(np.float32, copy=False)


def _whole_days(table: F32, of_row: I64, min_rows: int) -> I64:
    days, day_of_row, rows = np.unique(of_row, return_inverse=True, return_counts=True)
    if len(days) == 0:
        return days
    start, end = days[0], days[-1]
    if rows[-1] < np.median(rows) / 2:
        end -= 1
    if rows[0] < np.median(rows) / 2:
        start += 1
    for values in table.T:
        seen = days[day_of_row[~np.isnan(values)].min(initial=len(days) - 1)]
        if days[0] < seen <= (start + end) // 2:
            start = max(start, seen + 1)
    return days[(days >= start) & (days <= end) & (rows >= min_rows)]


def _edges(values: F32, is_category: bool, bins: int) -> F32:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return np.empty(0, np.float32)
    if is_category:
        return np.arange(0.5, min(float(values.max()), bins - 1), dtype=np.float32)
    found = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
    return found[found < values.max()].astype(np.float32)


def _in_proportion(statistic: F64) -> F64:
    return np.concatenate([np.sqrt(statistic[..., :1]), statistic[..., 1:]], axis=-1)


def _upper_quantile(values: F64, rate: float) -> float:
    ranked = np.sort(values)
    n = len(ranked)
    place = int(np.ceil((n + 1) * (1 - rate) - 1e-9))
    if place <= n:
        return float(ranked[place - 1])
    tail = np.maximum(ranked[-max(n // 10, 5) - 1 :], 1e-3)
    hill = float(np.log(tail[1:] / tail[0]).mean())
    return float(ranked[-1] * (1 / ((n + 1) * rate)) ** hill)
