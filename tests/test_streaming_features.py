"""Every streaming feature is what brute force over the raw events says, by way of cuts, shards, batches, dumps and expiry."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import state as states
from features.expressions import compile_expression, mask
from features.memo import Memo
from features.spec import Aggregate, Last, Streaming, Window, seconds
from features.state import State
from features.streaming import Cutter, Group, codes, floats, groups
from kernels.last_values import naive as last_values
from kernels.windows import naive as windows

SCHEMA = pa.schema(
    [
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("at", pa.timestamp("us", "UTC")),
        ("card", pa.string()),
        ("shop", pa.string()),
        ("amount", pa.float64()),
        ("fee", pa.int64()),
    ]
)
PAID = "kind == 'paid'"
NUMBERS: tuple[Aggregate, ...] = ("count", "sum", "mean", "min", "max", "std", "last", "age", "distinct", "rate")
POOL: list[Streaming] = [
    Window("card", "amount", over="10m", aggs=NUMBERS, where=PAID),
    Window("card", "amount", over="1h", aggs=("max", "count"), where=PAID, tile="1s"),
    Window("card", "amount", over="40s", aggs=("sum",), where=PAID),
    Window("card", "amount", over="20s", aggs=("sum", "last"), where="amount > 50", name="large"),
    Window("card", "amount", over="30s", aggs=("mean", "std"), late="drop", name="in_turn"),
    Window("card", "amount * 2 - fee", over="30s", aggs=("min", "max", "sum"), name="net"),
    Window("card", "shop", over="1m", aggs=("distinct", "count", "rate")),
    Window("card", "shop", over="2m", aggs=("distinct",), where=PAID, tile="20s", name="shops"),
    Window("card", "fee", over="1m", aggs=("decayed", "sum"), half_life="7s", tile="5s"),
    Window("card", "fee", over="50s", aggs=("decayed",), half_life="7s", tile="5s"),
    Last("card", "amount", "fee", within="15s", where=PAID),
    Last("card", "amount / fee", within="60s", name="share"),
]
ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 4),
        st.none() | st.sampled_from("ABC"),
        st.none() | st.sampled_from(["x", "y", "z", "w"]),
        st.none() | st.integers(1, 100),
        st.none() | st.integers(1, 9),
    ),
    max_size=60,
)


def batch_of(rows: list[tuple[Any, ...]], lateness: list[int]) -> pa.RecordBatch:
    """Rows in the order of arrival: each some seconds after the one before it, less its lateness."""
    steps = np.cumsum([step for _, step, *_ in rows], dtype=np.int64) if rows else np.zeros(0, np.int64)
    late = np.array([lateness[k % len(lateness)] for k in range(len(rows))], np.int64)
    at = (1_700_000_000 + steps - late) * 1_000_000 + (np.arange(len(rows)) * 370_000) % 1_000_000
    kinds = pa.DictionaryArray.from_arrays(pa.array([row[0] for row in rows], pa.int8()), ["paid", "refund"])
    return pa.record_batch(
        [
            kinds,
            pa.array(at).cast(pa.timestamp("us", "UTC")),
            pa.array([row[2] for row in rows], pa.string()),
            pa.array([row[3] for row in rows], pa.string()),
            pa.array([row[4] for row in rows], pa.float64()),
            pa.array([row[5] for row in rows], pa.int64()),
        ],
        schema=SCHEMA,
    )


def expected(group: Group, batch: pa.RecordBatch) -> np.ndarray:
    """[f, n] by definition, NaN where there is no card."""
    cards = batch["card"].to_pylist()
    slots = [-1 if card is None else "ABC".index(card) for card in cards]
    times = batch["at"].cast(pa.int64()).to_pylist()
    out = []
    for feature in group.features:
        fires = mask(compile_expression(feature.where, SCHEMA), batch)
        if isinstance(feature, Window):
            column = compile_expression(feature.value, SCHEMA)(batch)
            values, of = floats(column), codes(column)
            there = fires & ~np.isnan(values)
            events = [
                windows.Event(slot, time, float(value) if ok else None, slot >= 0, int(code) if ok else 0)
                for slot, time, value, code, ok in zip(slots, times, values, of, there, strict=True)
            ]
            half_life = seconds(feature.half_life) * 1e6 if feature.half_life else 0.0
            over, tile = seconds(feature.over) * 1_000_000, feature.tile_seconds * 1_000_000
            seen, _, _ = windows.window(events, over, tile, feature.late == "use", half_life)
            for agg in feature.aggs:
                if agg == "distinct":
                    out.append([windows.sketched([code for _, _, code in each.held]) for each in seen])
                else:
                    out.append([windows.AGGREGATES[agg](each) for each in seen])
        else:
            for value in feature.values:
                column = floats(compile_expression(value, SCHEMA)(batch))
                of_last = [
                    last_values.Event(slot, time, float(one) if ok and not np.isnan(one) else None, slot >= 0)
                    for slot, time, one, ok in zip(slots, times, column, fires, strict=True)
                ]
                out.append(last_values.last(of_last, seconds(feature.within) * 1_000_000))
    made = np.full((len(group.names), len(cards)), np.nan)
    made[:, [slot >= 0 for slot in slots]] = np.array(out).reshape(len(group.names), -1)
    return made


def served(
    group: Group, batch: pa.RecordBatch, edges: list[int], shards: int, dumps: bool, most: int = 0
) -> tuple[np.ndarray, list[State]]:
    """[f, n] by so many states, in batches that begin at these rows, dumped and loaded between them."""
    cutter = Cutter(group, SCHEMA, "at")
    held = [State(group, most) for _ in range(shards)]
    out = np.full((len(group.names), batch.num_rows), np.nan)
    for a, b in pairwise([0, *edges, batch.num_rows]):
        cut = cutter(Memo(batch.slice(a, b - a)), np.ones(b - a, np.bool_))
        for shard in range(shards):
            part = cut.take(np.flatnonzero(cut.hash % np.uint64(shards) == shard))
            out[:, a + part.row[part.reads]] = held[shard].update(part)
        if dumps:
            for shard, state in enumerate(held):
                held[shard] = State(group, most)
                for piece in (1, 0):
                    held[shard].load([state.dump(piece, 2)])
    return out, held


@given(
    ROWS,
    st.lists(st.sampled_from([0, 0, 0, 1, 5, 30, 90]), min_size=1, max_size=7),
    st.lists(st.sampled_from(POOL), min_size=1, max_size=6, unique_by=lambda feature: feature.names),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(1, 3),
    st.booleans(),
)
def test_features_are_those_of_the_definition(
    rows: list[Any], lateness: list[int], features: list[Streaming], cuts: list[int], shards: int, dumps: bool
) -> None:
    batch, group = batch_of(rows, lateness), groups(features)[0]
    edges = sorted(min(cut, batch.num_rows) for cut in cuts)
    got, _ = served(group, batch, edges, shards, dumps)
    np.testing.assert_allclose(got, expected(group, batch), rtol=1e-9, atol=1e-9)


def many(n: int, cards: int, seed: int, step_ms: int) -> pa.RecordBatch:
    """n payments in event order of cards that come and go."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, 40, n) + np.arange(n) * cards // n
    return pa.record_batch(
        [
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(n), pa.int8()), ["paid", "refund"]),
            pa.array(1_700_000_000_000_000 + np.arange(n) * step_ms * 1000).cast(pa.timestamp("us", "UTC")),
            pa.array([f"card {card}" for card in of]),
            pa.array([f"shop {shop}" for shop in rng.integers(0, 9, n)]),
            pa.array(rng.integers(1, 100, n).astype(float)),
            pa.array(rng.integers(1, 9, n)),
        ],
        schema=SCHEMA,
    )


def test_idle_entities_leave_and_no_feature_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, group = many(6000, 900, 3, 100), groups([POOL[2], POOL[6], POOL[10]])[0]
    edges = list(range(250, 6000, 250))
    kept, [everyone] = served(group, batch, edges, 1, False)
    monkeypatch.setattr(states, "FEW", 0)
    for dumps in (False, True):
        got, [state] = served(group, batch, edges, 1, dumps)
        np.testing.assert_array_equal(got, kept)
        assert state.entities[0] < everyone.entities[0] / 3
    assert everyone.entities[1:] == (0, 0)


def test_beyond_the_bound_the_idlest_leave_and_are_counted() -> None:
    """Forty cards are in use at a time: a bound of 200 puts out those that do not come again, one of 20 others too."""
    batch, group = many(6000, 900, 3, 100), groups([POOL[0]])[0]
    edges = list(range(50, 6000, 50))
    kept, [everyone] = served(group, batch, edges, 1, False)
    for most in (200, 20):
        got, [state] = served(group, batch, edges, 1, False, most=most)
        held, expired, evicted = state.entities
        assert evicted >= everyone.entities[0] - held > 0
        assert (expired, held <= most + 50) == (0, True)
        same = ((got == kept) | np.isnan(kept)).all(axis=0).mean()
        assert same == 1 if most == 200 else same < 0.9


def test_late_updates_are_counted_for_each_window() -> None:
    group = groups([POOL[2], Window("card", "amount", over="20s", aggs=("min",), late="drop")])[0]
    rows = [(0, 10, "A", None, 5, None), (0, 0, "A", None, 5, None), (0, 0, "A", None, 5, None)]
    _, [state] = served(group, batch_of(rows, [0, 15, 90]), [], 1, False)
    assert state.late == (1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Window("card", "amount + 1", over="1h", aggs=("sum",)),
            "expected a name for it, as name=, got 'amount \\+ 1'",
        ),
        (lambda: Window("card", "amount", over="7201s", aggs=("sum",)), r"expected a multiple of its tile \(60s\)"),
        (lambda: Window("card", "amount", over="1h", aggs=("sum", "median")), "got median"),  # type: ignore[arg-type]
        (lambda: Window("card", "amount", over="1h", aggs=()), "got none"),
        (lambda: Window("card", "amount", over="1h", aggs=("decayed",)), 'expected "decayed" and half_life= together'),
        (lambda: Window("card", "amount", over="2h", aggs=("decayed",), half_life="30s"), "half_life of at least its tile"),
        (lambda: Window("card", "amount", over="1h", aggs=("sum",), late="maybe"), 'got "maybe"'),  # type: ignore[arg-type]
        (lambda: Last("card", "amount", "fee", within="1h", name="both"), "expected one value for the name both, got 2"),
        (lambda: Last("card", "amount + fee", within="1h"), "expected a name for it"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([Window("card", "shop", over="1h", aggs=("sum",))], "shop_sum_1h_by_card: expected shop to be a number, got string"),
        ([Window("card", "at", over="1h", aggs=("distinct",))], "expected at to be a number or a text, got timestamp"),
        ([POOL[2], Window("card", "amount", over="40s", aggs=("sum",))], "amount_sum_40s_by_card: expected one of this name"),
        ([Window("card", "fee", over="1h", aggs=("sum",), where=f"fee > {k}", name=f"f{k}") for k in range(32)], "at most 31"),
    ],
)
def test_what_does_not_fit_the_events_is_refused(features: list[Streaming], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cutter(groups(features)[0], SCHEMA, "at")


def test_windows_that_differ_in_length_alone_share_their_tiles() -> None:
    assert len(states.stores(groups(POOL[:3])[0])) == 1
    assert len(states.stores(groups(POOL[:5])[0])) == 3
