"""Cutting, sharding, dumping and loading change no feature; another group's dump is refused."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.memo import Memo
from features.spec import Last, Window, seconds, tile_seconds
from features.state import State
from features.streaming import Cutter, event_order, groups

SCHEMA = pa.schema(
    [
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("at", pa.timestamp("us", "UTC")),
        ("id", pa.int64()),
        ("card", pa.string()),
        ("amount", pa.float64()),
    ]
)
FEATURES = [
    Window("card", "amount", over="2h", aggs=("count", "sum", "mean", "min", "max"), where="kind == 'paid'"),
    Last("card", "amount", within="1h", where="kind == 'refund'"),
]
GROUP = groups(FEATURES)[0]


def events(n: int, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    cards = [None if k % 11 == 0 else f"c{k}" for k in rng.integers(0, 60, n)]
    return pa.record_batch(
        [
            pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, 2, n), pa.int8()), ["paid", "refund"]),
            pa.array(np.sort(rng.integers(0, 4 * 3600, n)) * 1_000_000).cast(pa.timestamp("us", "UTC")),
            pa.array(np.arange(n)),
            pa.array(cards),
            pa.array(rng.integers(0, 100, n).astype(float), mask=rng.random(n) < 0.1),
        ],
        schema=SCHEMA,
    )


def loaded(dumps: list[Any]) -> State:
    state = State(GROUP)
    for dump in dumps:
        state.load([dump])
    return state


def features(batch: pa.RecordBatch, shards: int, pieces: int, dump: bool) -> np.ndarray:
    """[f, n] of all rows, by way of so many states and batches, each dumped in three parts and loaded between batches."""
    cutter = Cutter(GROUP, SCHEMA, "at")
    states = [State(GROUP) for _ in range(shards)]
    out = []
    for rows in np.array_split(np.arange(batch.num_rows), pieces):
        piece = batch.take(pa.array(rows))
        made = np.full((len(GROUP.names), len(rows)), np.nan)
        cut = cutter(Memo(piece), np.ones(len(rows), np.bool_))
        for shard in range(shards):
            part = cut.take(np.flatnonzero(cut.hash % np.uint64(shards) == shard))
            made[:, part.row[part.reads]] = states[shard].update(part)
        if dump:
            states = [loaded([state.dump(part, 3) for part in (2, 0, 1)]) for state in states]
        out.append(made)
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize(("shards", "pieces", "dump"), [(1, 7, False), (3, 1, False), (5, 13, True)])
def test_shards_batches_and_dumps_change_nothing(shards: int, pieces: int, dump: bool) -> None:
    batch = events(997, seed=1)
    whole = features(batch, 1, 1, dump=False)
    np.testing.assert_array_equal(features(batch, shards, pieces, dump), whole)
    assert np.isfinite(whole).mean() > 0.5
    no_card = batch["card"].is_null().to_numpy(zero_copy_only=False)
    assert np.isnan(whole[:, no_card]).all()


def test_another_groups_dump_is_refused() -> None:
    other = groups([Window("card", "amount", over="1h", aggs=("count",), where="kind == 'paid'")])[0]
    with pytest.raises(ValueError, match="state of card: expected the features"):
        State(GROUP).load([State(other).dump()])


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Last("cart", "amount", within="1h", where="kind == 'paid'"), "amount_last_by_cart: no column cart"),
        (Last("card", "kind", within="1h", where="kind == 'paid'"), "expected kind to be a number, got dictionary"),
        (Last("card", "amount", within="1h", where="kin == 'paid'"), "no column kin"),
    ],
)
def test_what_does_not_fit_the_events_is_refused(feature: Last, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cutter(groups([feature])[0], SCHEMA, "at")


def test_event_order_is_time_then_ties() -> None:
    batch = events(50, seed=2)
    shuffled = batch.take(pa.array(np.random.default_rng(3).permutation(50)))
    again = shuffled.take(pa.array(event_order(shuffled, "at", ["kind", "id"])))
    rows: list[Any] = [(row["at"], ("paid", "refund").index(row["kind"]), row["id"]) for row in again.to_pylist()]
    assert rows == sorted(rows)


def test_durations() -> None:
    assert (seconds("90s"), seconds("2h"), tile_seconds(7200), tile_seconds(86400), tile_seconds(100)) == (90, 7200, 60, 60, 1)
    with pytest.raises(ValueError, match='got "2 hours"'):
        seconds("2 hours")
