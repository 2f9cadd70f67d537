"""From scores to decisions: bands of the score, and ordered rules over features that come before them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.expressions import BOOL, Expression, compile_expression, mask

SCORE = "score"
NO_SCORE = "no_score"


@dataclass(frozen=True)
class Rule:
    """`decide` wherever the condition `when` holds; `code` is the reason given.

    when: an expression (features/expressions.py) over the features, the event's columns and `score` (float32, null where the
    model gave none); null counts as false.
    """

    code: str
    when: str
    decide: str


@dataclass(frozen=True)
class Decided:
    """What was decided of n rows: decision dictionary<int8, string> [n], reasons list<string> [n], both without nulls."""

    decision: pa.DictionaryArray
    reasons: pa.ListArray


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
        self._conditions = tuple(conditions)
        self._reads_score = any(SCORE in condition.names for condition in conditions)
        self._thresholds = np.array([value for _, value in reversed(bands.bands)], np.float32)
        self._decisions = pa.array(bands.decisions, pa.string())
        code = {name: k for k, name in enumerate(bands.decisions)}
        names = [bands.otherwise, *(name for name, _ in reversed(bands.bands)), bands.fallback]
        self._by_band = np.array([code[name] for name in names], np.int8)
        self._by_rule = np.array([code[rule.decide] for rule in bands.rules], np.int8)
        lowest = bands.bands[-1][1]
        said = [f"score<{lowest:g}", *(f"score>={value:g}" for _, value in reversed(bands.bands)), NO_SCORE]
        self._band_codes = said
        self._band_reasons = pa.array([[text] for text in said], pa.list_(pa.string()))

    def __call__(self, batch: pa.RecordBatch, scores: npt.NDArray[np.float32]) -> Decided:
        band = np.searchsorted(self._thresholds, scores, side="right")
        missing = np.isnan(scores)
        band[missing] = len(self._thresholds) + 1
        decided = self._by_band[band]
        bits = np.zeros(len(scores), np.int64)
        seen = batch
        if self._reads_score:
            seen = batch.append_column(SCORE, pa.array(scores, pa.float32(), mask=missing))
        for k in range(len(self._conditions) - 1, -1, -1):
            fired = mask(self._conditions[k], seen)
            if fired.any():
                decided[fired] = self._by_rule[k]
                bits |= fired.astype(np.int64) << k
        decision = pa.DictionaryArray.from_arrays(pa.array(decided), self._decisions)
        return Decided(decision, self._reasons(band, bits))

    def _reasons(self, band: npt.NDArray[np.int64], bits: npt.NDArray[np.int64]) -> pa.ListArray:
        if not bits.any():
            return self._band_reasons.take(pa.array(band))
        codes = [rule.code for rule in self.bands.rules]
        combined = pa.array(bits * len(self._band_codes) + band).dictionary_encode()
        lists = []
        for value in combined.dictionary.to_pylist():
            fired, which = divmod(value, len(self._band_codes))
            lists.append([*(code for k, code in enumerate(codes) if fired >> k & 1), self._band_codes[which]])
        return pa.array(lists, pa.list_(pa.string())).take(combined.indices)
