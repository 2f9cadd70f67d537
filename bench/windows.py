"""The windows' parts of `bench.features`: updates and reads, snapshots, and backfill beside polars and pandas.

The stream: payments of cards, every card equally often and in no order (the worst for a cache), a window of two hours with
three aggregates, each event read and then counted in. The stream lasts five hours, of which the last two are timed.
"""

import argparse
import gc
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa

from bench.figures import Figure, WrongError, figure, timed
from features.memo import Memo
from features.spec import Window
from features.state import State
from features.streaming import Cut, Cutter, Group, event_order, groups
from kernels.windows import naive
from streams.shards import PAGES, Shards

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
HOUR = 3_600_000_000
MINUTE = 60_000_000
START = 1_700_000_000_000_000 // HOUR * HOUR
WINDOW = Window("card", "amount", over="2h", aggs=("count", "mean", "max"))
GROUP: Group = groups([WINDOW])[0]
GOAL_NS = 150.0
NAIVE_EVENTS = 2_000
SHARDS = 8
EPOCH_EVENTS = 25_000
CHECKED = 500


@dataclass(frozen=True)
class Stream:
    """Events in order of time: which card, when (microseconds), how much. before: how many stand before what is timed."""

    hashes: npt.NDArray[np.uint64]
    cards: I64
    times: I64
    amounts: F64
    before: int

    def cuts(self, start: int, stop: int, rows: int) -> Iterator[Cut]:
        """Cuts of so many rows; all read and update."""
        for a in range(start, stop, rows):
            b = min(a + rows, stop)
            n = b - a
            yield Cut(
                np.arange(n, dtype=np.int32),
                self.hashes[self.cards[a:b]],
                self.times[a:b],
                np.full(n, 3, np.uint32),
                self.amounts[None, a:b],
                np.empty((0, n), np.int64),
            )


def stream(entities: int, events: int, seed: int = 0) -> Stream:
    """Every card once, then `events` of them."""
    rng = np.random.default_rng(seed)
    cards = np.concatenate([rng.permutation(entities), rng.integers(0, entities, events)])
    n = len(cards)
    times = START + np.arange(n) * (5 * HOUR) // n
    hashes = rng.integers(1, 2**64, entities, np.uint64, endpoint=False)
    return Stream(hashes, cards, times, rng.integers(1, 1000, n).astype(float), n * 3 // 5)


def windows(options: argparse.Namespace) -> list[Figure]:
    """Nanoseconds an event of State.update, and of the naive twin."""
    _agrees_with_naive()
    made = stream(options.entities, options.events)
    whole, middle = [], []
    for _ in range(options.turns):
        state = filled(made, made.before, State(GROUP))
        cuts = list(made.cuts(made.before, len(made.cards), options.rows))
        gc.collect()
        took = np.array([timed(state.update, cut)[0] for cut in cuts]) * 1e9
        _ends_right(state, made)
        rows = np.array([len(cut.time) for cut in cuts])
        whole.append(float(took.sum() / rows.sum()))
        middle.append(float(np.median(took / rows)))
    events = raw(stream(50, NAIVE_EVENTS))
    by_hand, _ = timed(told, events)
    what = f"3 aggregates, 1 window, {options.entities:,} entities"
    return [
        figure("windows", what, "ns an event", whole, GOAL_NS),
        figure("windows", f"{what}, the middle batch", "ns an event", middle),
        figure(
            "windows", f"the naive twin, {len(events):,} events of 50 entities", "ns an event", [by_hand / len(events) * 1e9]
        ),
    ]


def snapshot(options: argparse.Namespace) -> list[Figure]:
    """Milliseconds and megabytes of an epoch's snapshot, of the whole state at once, and of coming back from the snapshots."""
    made = stream(options.entities, options.events)
    epochs = PAGES + options.turns
    changed = min(EPOCH_EVENTS, options.events // (2 * epochs))
    start = len(made.cards) - epochs * changed
    shards = Shards([GROUP], SHARDS, None)
    state = filled(made, start, shards.states[0])
    took: dict[str, list[float]] = {"taken": [], "pickled": [], "size": [], "resumed": []}
    store: dict[tuple[int, int], bytes] = {}
    for epoch in range(epochs):
        for cut in made.cuts(start + epoch * changed, start + (epoch + 1) * changed, options.rows):
            state.update(cut)
        taking, taken = timed(_taken, shards, epoch % PAGES)
        pickling, packed = timed(_packed, taken)
        store |= {(shard, epoch % PAGES): each for shard, each in enumerate(packed)}
        if epoch >= PAGES:
            for name, value in (("taken", taking * 1e3), ("pickled", pickling * 1e3), ("size", sum(map(len, packed)) / 1e6)):
                took[name].append(value)
    for _ in range(options.turns):
        gc.collect()
        resuming, again = timed(_resumed, store.values())
        took["resumed"].append(resuming * 1e3)
    _ends_right(again, made)
    whole, dumps = timed(lambda: [state.dump(shard, SHARDS) for shard in range(SHARDS)])
    entities = f"{state.entities[0]:,} entities in {SHARDS} shards"
    each = f"an epoch with {changed:,} events"
    return [
        figure("snapshot", f"{each}, taken: {entities}", "ms", took["taken"]),
        figure("snapshot", f"{each}, pickled", "ms", took["pickled"]),
        figure("snapshot", f"{each}, size", "MB", took["size"]),
        figure("snapshot", "the whole at once instead", "ms", [whole * 1e3]),
        figure("snapshot", "the whole at once instead, size", "MB", [len(pickle.dumps(dumps, 5)) / 1e6]),
        figure("snapshot", "all that is kept, size", "MB", [sum(map(len, store.values())) / 1e6]),
        figure("snapshot", "resumed from it", "ms", took["resumed"]),
    ]


def _taken(shards: Shards, page: int) -> list[dict[str, Any]]:
    return [shards.snapshot(shard, page) for shard in range(SHARDS)]


def _packed(snapshots: list[dict[str, Any]]) -> list[bytes]:
    return [pickle.dumps(each, 5) for each in snapshots]


def _resumed(store: Iterable[bytes]) -> State:
    shards = Shards([GROUP], SHARDS, None)
    for each in store:
        shards.resume(pickle.loads(each))
    shards.ready()
    return shards.states[0]


def backfill(options: argparse.Namespace) -> list[Figure]:
    """Features of past events: ours, with cutting, beside polars and pandas. All three must give the same.

    The events are made such that the definitions are the same: at whole minutes, and no two of a card in one.
    """
    rng = np.random.default_rng(1)
    events, cards = options.events // 4, max(1, options.entities // 100)
    frame = pl.DataFrame({"card": rng.integers(0, cards, events), "minute": rng.integers(0, 48 * 60, events)})
    frame = frame.unique(maintain_order=True)
    frame = frame.with_columns(
        at=(START + pl.col("minute") * MINUTE).cast(pl.Datetime("us", "UTC")),
        amount=pl.Series(rng.integers(1, 1000, frame.height).astype(float)),
    ).sort("at", "card")
    history = pa.record_batch(
        {name: frame[name].to_arrow().cast(kind) for name, kind in (("card", pa.int64()), ("at", pa.timestamp("us", "UTC")))}
        | {"amount": frame["amount"].to_arrow()}
    )
    ways = {
        "headrace": lambda: _ours(history),
        "polars": lambda: _polars(frame),
        "pandas": lambda: _pandas(frame),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    wanted: F64 | None = None
    for turn in range(max(1, min(options.turns, 3))):
        for name, way in ways.items():
            each, found = timed(way)
            took[name].append(each / frame.height * 1e9)
            wanted = found if wanted is None else wanted
            if turn == 0 and not np.allclose(found, wanted, rtol=1e-9, equal_nan=True):
                raise WrongError(f"{name} gives other features than headrace")
    what = f"{frame.height:,} events of {cards:,} entities"
    return [figure("backfill", f"{name}, {what}", "ns an event", values) for name, values in took.items()]


def _ours(history: pa.RecordBatch) -> F64:
    batch = history.take(pa.array(event_order(history, "at", ())))
    cut = Cutter(GROUP, batch.schema, "at")(Memo(batch), np.ones(batch.num_rows, np.bool_))
    return State(GROUP).update(cut)


def _polars(frame: pl.DataFrame) -> F64:
    amount, one = pl.col("amount"), pl.lit(1.0)
    window = {"window_size": "2h", "closed": "left"}
    made = frame.with_columns(one=one).select(
        count=pl.col("one").rolling_sum_by("at", **window).over("card").fill_null(0.0),  # type: ignore[arg-type]
        mean=amount.rolling_mean_by("at", **window).over("card"),  # type: ignore[arg-type]
        max=amount.rolling_max_by("at", **window).over("card"),  # type: ignore[arg-type]
    )
    return made.to_numpy().T


def _pandas(frame: pl.DataFrame) -> F64:
    table = pd.DataFrame({name: frame[name].to_numpy() for name in ("card", "at", "amount")})
    rolling = table.set_index("at").groupby("card")["amount"].rolling("2h", closed="left")
    made = np.array([rolling.count(), rolling.mean(), rolling.max()], dtype=np.float64)
    back = np.empty_like(made)
    back[:, np.argsort(table["card"].to_numpy(), kind="stable")] = made
    return np.where(np.isnan(back) & (np.arange(3) == 0)[:, None], 0.0, back)


def filled(made: Stream, events: int, state: State) -> State:
    """The state when it has seen so many events."""
    for cut in made.cuts(0, events, 1 << 16):
        state.update(cut)
    return state


def raw(made: Stream) -> list[naive.Event]:
    """The events one by one, as the definition takes them."""
    rows = zip(made.cards.tolist(), made.times.tolist(), made.amounts.tolist(), strict=True)
    return [naive.Event(card, time, amount, True) for card, time, amount in rows]


def told(events: list[naive.Event]) -> F64:
    """The features [3, n] by definition."""
    seen, _, _ = naive.window(events, 2 * HOUR, MINUTE)
    return np.array([[naive.AGGREGATES[name](each) for each in seen] for name in WINDOW.aggs])


def _agrees_with_naive() -> None:
    some = stream(50, NAIVE_EVENTS, seed=2)
    state = State(GROUP)
    got = np.concatenate([state.update(cut) for cut in some.cuts(0, len(some.cards), 97)], axis=1)
    if not np.allclose(got, told(raw(some)), rtol=1e-12, equal_nan=True):
        raise WrongError("the kernel does not agree with its naive twin")


def _ends_right(state: State, made: Stream) -> None:
    """Whether some cards' features after the last event are what numpy finds in all of the events."""
    now = int(made.times[-1])
    some = np.unique(made.cards[-CHECKED:])
    cut = Cut(
        np.arange(len(some), dtype=np.int32),
        made.hashes[some],
        np.full(len(some), now),
        np.ones(len(some), np.uint32),
        np.full((1, len(some)), np.nan),
        np.empty((0, len(some)), np.int64),
    )
    got = state.update(cut)
    recent = made.times >= now // MINUTE * MINUTE - 2 * HOUR
    cards, amounts = made.cards[recent], made.amounts[recent]
    held = np.isin(cards, some)
    of = np.searchsorted(some, cards[held])
    count = np.bincount(of, minlength=len(some))
    high = np.full(len(some), -np.inf)
    np.maximum.at(high, of, amounts[held])
    expected = np.array([count, np.bincount(of, amounts[held], len(some)) / count, high])
    if not np.allclose(got, expected, rtol=1e-12):
        raise WrongError("after the stream the windows do not hold what its events say")
