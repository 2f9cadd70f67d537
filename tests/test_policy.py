"""Policies on columns decide what deciding row by row does, and say why."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.policy import Bands, Combinations, Rule

COLUMNS = pa.schema([("wind", pa.float64()), ("carrier", pa.string())])
RULES = [
    Rule("storm", when="wind >= 60", decide="watch"),
    Rule("strike", when="carrier == 'XX'", decide="cancel"),
    Rule("sure", when="score > 0.9 and wind is not None", decide="late"),
]
BANDS = Bands(late=0.5, watch=0.3, otherwise="on_time", rules=RULES, fallback="unknown")


def by_row(wind: float | None, carrier: str | None, score: float) -> tuple[str, list[str]]:
    fired = []
    if wind is not None and wind >= 60:
        fired.append(("storm", "watch"))
    if carrier == "XX":
        fired.append(("strike", "cancel"))
    if score > 0.9 and wind is not None:
        fired.append(("sure", "late"))
    if math.isnan(score):
        band, why = "unknown", "no_score"
    elif score >= 0.5:
        band, why = "late", "score>=0.5"
    elif score >= np.float32(0.3):
        band, why = "watch", "score>=0.3"
    else:
        band, why = "on_time", "score<0.3"
    return (fired[0][1] if fired else band), [*(code for code, _ in fired), why]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 0.0, 59.9, 60.0]),
            st.sampled_from([None, "XX", "AA"]),
            st.sampled_from([float("nan"), 0.0, 0.3, 0.2999, 0.5, 0.91, 1.0]),
        ),
        max_size=40,
    )
)
def test_columns_decide_as_rows_do(rows: list[tuple[float | None, str | None, float]]) -> None:
    batch = pa.RecordBatch.from_pylist([{"wind": wind, "carrier": carrier} for wind, carrier, _ in rows], COLUMNS)
    scores = np.array([score for *_, score in rows], np.float32)
    decided = BANDS.compile(COLUMNS)(batch, scores)
    expected = [by_row(wind, carrier, float(np.float32(score))) for wind, carrier, score in rows]
    assert list(zip(decided.decision.to_pylist(), decided.reasons.to_pylist(), strict=True)) == expected
    assert list(decided.decision.values) == ["late", "watch", "on_time", "unknown", "cancel"]


def test_a_score_of_0_7_reaches_a_band_of_0_7() -> None:
    """0.7 in float32 is below 0.7 in float64."""
    decided = Bands(block=0.7, otherwise="allow").compile(pa.schema([]))
    batch = pa.RecordBatch.from_arrays([pa.nulls(3)], ["none"])
    result = decided(batch, np.array([0.7, 0.6999, np.nan], np.float32))
    assert result.decision.to_pylist() == ["block", "allow", "allow"]
    assert result.reasons.to_pylist() == [["score>=0.7"], ["score<0.7"], ["no_score"]]


def test_an_event_with_a_score_of_its_own_is_no_trouble_unless_a_rule_means_it() -> None:
    columns = COLUMNS.append(pa.field("score", pa.string()))
    batch = pa.RecordBatch.from_pylist([{"wind": 70.0, "carrier": "AA", "score": "3:1"}], columns)
    decided = Bands(late=0.5, otherwise="on_time", rules=RULES[:2]).compile(columns)(batch, np.array([0.1], np.float32))
    assert (decided.decision.to_pylist(), decided.reasons.to_pylist()) == (["watch"], [["storm", "score<0.5"]])
    ambiguous = Rule("sure", when="score == '3:1'", decide="late")
    with pytest.raises(ValueError, match=r"rule sure: .* `score` is both a column and the model's score"):
        Bands(late=0.5, otherwise="on_time", rules=[ambiguous]).compile(columns)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Rule("storm", when="wnd >= 60", decide="watch"),
            r"rule storm: .*no column wnd \(did you mean wind\?\) at character 1",
        ),
        (Rule("storm", when="wind + 60", decide="watch"), "rule storm: 'wind \\+ 60': expected a condition, got double"),
        (Rule("storm", when="wind >= '60'", decide="watch"), "rule storm: .* >= does not take double and string"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused_when_compiled(rule: Rule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bands(late=0.5, otherwise="on_time", rules=[rule]).compile(COLUMNS)


def test_bands_that_make_no_sense_are_refused_when_made() -> None:
    with pytest.raises(ValueError, match="at least one band"):
        Bands(otherwise="x")
    with pytest.raises(ValueError, match="bands a and b: expected different thresholds"):
        Bands(a=0.5, b=0.5, otherwise="x")
    with pytest.raises(ValueError, match="band a: expected a finite threshold, got nan"):
        Bands(a=float("nan"), otherwise="x")
    with pytest.raises(ValueError, match="got storm 2 times"):
        Bands(a=0.5, otherwise="x", rules=[RULES[0], RULES[0]])


@given(st.lists(st.lists(st.integers(0, 2**62 - 1) | st.integers(0, 5), max_size=9), max_size=5), st.integers(0, 3))
def test_each_combination_has_its_list_whenever_it_came(batches: list[list[int]], first: int) -> None:
    spelled = list[int]()

    def spell(bits: int) -> list[str]:
        spelled.append(bits)
        return [str(bits)]

    combinations = Combinations(spell, first)
    for bits in batches:
        assert combinations(np.array(bits, np.int64)).to_pylist() == [[str(each)] for each in bits]
    assert len(spelled) == len(set(spelled))
