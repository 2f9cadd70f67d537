"""From scores to decisions: bands of the score, and ordered rules over features that come before them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.expressions import BOOL, Expression, compile_expression, mask

SCORE = "score"
NO_SCORE = "no_score"
NOTHING: Mapping[str, Any] = {}
LAST = np.iinfo(np.int64).max
"""Comes after all combinations of bits."""


@dataclass(frozen=True)
class Rule:
    """`decide` wherever the condition `when` holds; `code` is the reason given.

    when: an expression (features/expressions.py) over the features, the event's columns and `score` (float32, null where the
    model gave none); null counts as false.
    """

    code: str
    when: str
    decide: str


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of codes int [n] into a list of values; from batch to batch the list may grow at its end."""

    values: Sequence[Any]
    codes: npt.NDArray[Any]

    def to_pylist(self) -> list[Any]:
        """The value of each row."""
        return [self.values[code] for code in self.codes.tolist()]

    def counts(self) -> list[tuple[Any, int]]:
        """The values that are there, and in how many rows."""
        counts = np.bincount(self.codes, minlength=len(self.values))
        return [(self.values[code], int(counts[code])) for code in np.flatnonzero(counts).tolist()]


class Combinations:
    """Lists of names for combinations of bits, made when a combination is first seen.

    lists[k] is what `spell` returns for the k-th combination; those of 0 up to `first` are there from the start, in order.
    """

    def __init__(self, spell: Callable[[int], list[str]], first: int) -> None:
        self._spell = spell
        self._first = first
        self.lists = [spell(bits) for bits in range(first)]
        self._known, self._codes = np.array([*range(first), LAST]), np.array([*range(first), 0])  # in order of bits

    def __call__(self, bits: npt.NDArray[np.int64]) -> Coded:
        """The lists of bits int64 [n]."""
        if len(bits) == 0 or bits.max() < self._first:
            return Coded(self.lists, bits)
        places = self._known.searchsorted(bits)
        new = self._known[places] != bits
        if new.any():
            self._learn(np.unique(bits[new]))
            places = self._known.searchsorted(bits)
        return Coded(self.lists, self._codes[places])

    def _learn(self, new: npt.NDArray[np.int64]) -> None:
        """Combinations, in order, that are not known."""
        codes = len(self.lists) + np.arange(len(new))
        self.lists += [self._spell(bits) for bits in new.tolist()]
        at = self._known.searchsorted(new)
        self._known, self._codes = np.insert(self._known, at, new), np.insert(self._codes, at, codes)


@dataclass(frozen=True)
class Decided:
    """What was decided of n rows: decision, a text each; reasons, a list of texts each."""

    decision: Coded
    reasons: Coded


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns by name: numbers [n] that are not in the batch (NaN for null) before those that are."""

    batch: pa.RecordBatch
    numbers: Mapping[str, npt.NDArray[Any]]

    def column(self, name: str) -> "pa.Array | npt.NDArray[Any]":
        found = self.numbers.get(name)
        return self.batch.column(name) if found is None else found

    def whole(self, names: Iterable[str]) -> pa.RecordBatch:
        """These as a record batch."""
        made = {name: self.column(name) for name in names}
        arrays = [pa.array(one, from_pandas=True) if isinstance(one, np.ndarray) else one for one in made.values()]
        return pa.RecordBatch.from_arrays(arrays, list(made))


@dataclass(frozen=True, init=False)
class Bands:
    """Decisions by the score: Bands(late=0.5, watch=0.3, otherwise="on_time") is late from 0.5, watch from 0.3, else on_time.

    Rules come before the bands, in order: the first whose condition holds decides. The reasons are the codes of all rules that
    hold, in order, and then that of the score: "score>=0.5" for the band it reached, "score<0.3" below all of them, or
    "no_score" where it is missing; there the rules still decide, and where none holds `fallback` does (`otherwise`, if none is
    given). Thresholds are compared as float32, as the scores are.
    """

    bands: tuple[tuple[str, float], ...]
    otherwise: str
    rules: tuple[Rule, ...]
    fallback: str

    def __init__(self, *, otherwise: str, rules: Sequence[Rule] = (), fallback: str | None = None, **bands: float) -> None:
        falling = tuple(sorted(((name, float(value)) for name, value in bands.items()), key=lambda band: -band[1]))
        if not falling:
            raise ValueError("policy: expected at least one band, such as late=0.5, got none")
        for name, value in falling:
            if not math.isfinite(value):
                raise ValueError(f"policy: band {name}: expected a finite threshold, got {value}")
        for (above, high), (below, low) in pairwise(falling):
            if np.float32(high) == np.float32(low):
                raise ValueError(f"policy: bands {above} and {below}: expected different thresholds, got {low:g} twice")
        codes = [rule.code for rule in rules]
        for code in codes:
            if codes.count(code) > 1:
                raise ValueError(f"policy: expected each rule to have a code of its own, got {code} {codes.count(code)} times")
        if len(codes) > 48:
            raise ValueError(f"policy: expected at most 48 rules, got {len(codes)}")
        object.__setattr__(self, "bands", falling)
        object.__setattr__(self, "otherwise", otherwise)
        object.__setattr__(self, "rules", tuple(rules))
        object.__setattr__(self, "fallback", otherwise if fallback is None else fallback)

    @property
    def decisions(self) -> tuple[str, ...]:
        """Everything that may be decided: bands by falling threshold, `otherwise`, then what only rules or the fallback say."""
        names = [name for name, _ in self.bands]
        return tuple(dict.fromkeys([*names, self.otherwise, self.fallback, *(rule.decide for rule in self.rules)]))

    def compile(self, columns: pa.Schema) -> "Policy":
        """The policy over batches with these columns.

        Raises ValueError, naming rule and place, for an unknown column, or a `when` that is no condition.
        """
        scored = columns if SCORE in columns.names else columns.append(pa.field(SCORE, pa.float32()))
        conditions = []
        for rule in self.rules:
            try:
                condition = compile_expression(rule.when, scored)
            except ValueError as error:
                raise ValueError(f"rule {rule.code}: {error}") from None
            if condition.type != BOOL:
                raise ValueError(f"rule {rule.code}: {rule.when!r}: expected a condition, got {condition.type}")
            if SCORE in condition.names and SCORE in columns.names:
                raise ValueError(f"rule {rule.code}: {rule.when!r}: `score` is both a column and the model's score")
            conditions.append(condition)
        return Policy(self, tuple(conditions))


class Policy:
    """A compiled policy: called with a batch of n rows and their scores float32 [n] (NaN: none), it returns Decided."""

    def __init__(self, bands: Bands, conditions: Sequence[Expression]) -> None:
        self.bands = bands
        self.conditions = tuple(conditions)
        self._thresholds = np.array([value for _, value in reversed(bands.bands)], np.float32)
        code = {name: k for k, name in enumerate(bands.decisions)}
        names = [bands.otherwise, *(name for name, _ in reversed(bands.bands)), bands.fallback]
        self._names = bands.decisions
        self._by_band = np.array([code[name] for name in names], np.int8)
        self._by_rule = np.array([code[rule.decide] for rule in bands.rules], np.int8)
        lowest = bands.bands[-1][1]
        self._said = [f"score<{lowest:g}", *(f"score>={value:g}" for _, value in reversed(bands.bands)), NO_SCORE]
        self._reasons = Combinations(self._spell, len(self._said))

    def __call__(
        self, batch: pa.RecordBatch, scores: npt.NDArray[np.float32], computed: Mapping[str, npt.NDArray[Any]] = NOTHING
    ) -> Decided:
        """computed: further columns that the rules may read, float [n] by name, NaN for null."""
        band = np.searchsorted(self._thresholds, scores, side="right")
        missing = np.isnan(scores)
        if missing.any():
            band[missing] = len(self._thresholds) + 1
        decided = self._by_band[band]
        reasons = band
        if self.conditions:
            seen = Columns(batch, {SCORE: scores, **computed} if self._reads_score else computed)
            for k in range(len(self.conditions) - 1, -1, -1):
                fired = self._fired(self.conditions[k], seen)
                if fired.any():
                    decided[fired] = self._by_rule[k]
                    reasons = reasons + (fired.astype(np.int64) << k) * len(self._said)
        return Decided(Coded(self._names, decided), self._reasons(reasons))

    @cached_property
    def _reads_score(self) -> bool:
        return any(SCORE in condition.names for condition in self.conditions)

    def _fired(self, condition: Expression, seen: Columns) -> npt.NDArray[np.bool_]:
        quick = condition.quick(seen) if condition.quick is not None else None
        return mask(condition, seen.whole(sorted(condition.names))) if quick is None else quick

    def _spell(self, reasons: int) -> list[str]:
        """Reasons as a number: the bits of the rules that hold, times the number of bands, plus the band."""
        fired, band = divmod(reasons, len(self._said))
        return [*(rule.code for k, rule in enumerate(self.bands.rules) if fired >> k & 1), self._said[band]]
