"""The stored features' parts of `bench.features`: rows held, rows not held, the matrix made of them, a store that goes.

One Feast view of 10 float32 features, written by Feast itself to SQLite and to a real redis-server started here. Beside ours
stand the naive twins, and in turns with them Feast's SDK, `get_online_features(...).to_dict()`. Writing takes half a minute.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bench.feature_stand import FEATURES, NOW_US, SQLITE, Stand, stand
from bench.figures import Figure, WrongError, figure, timed
from bench.redis_server import RedisServer, redis_server
from features.entity_keys import entity_keys
from features.online import feast_reader
from features.stored import StoredFeatures
from features.views import views
from kernels.stored_rows import naive
from models.spec import Input, ModelSpec, assemble

ENTITIES = 100_000
COLD_ENTITIES = 20_000
COLD_ROWS = 1_000
COLD_BATCHES = 6
SECONDS = 1.0
WARM_GOAL_NS = 1_000.0
COLD_GOAL = 0.125
CELL_GOAL_NS = 3.0
OUTAGE_GOAL = 2.0


def warm(options: argparse.Namespace) -> list[Figure]:
    """Look-ups of rows that are held, keys by Zipf's law, with hashing, flags and the columns that they end in."""
    figures = []
    with stand(SQLITE, ENTITIES) as made:
        stored = made.opened(max_entities=ENTITIES)
        try:
            seconds, held = timed(stored.warm, 600.0)
            everybody = np.arange(ENTITIES)
            if held != ENTITIES:
                raise WrongError(f"warm start: expected {ENTITIES:,} entities, got {held:,}")
            made.check(stored.read(made.batch(everybody), np.full(ENTITIES, NOW_US)).columns, everybody)
            figures.append(figure("warm", "start: read from SQLite in bulk", "µs a row", [seconds / ENTITIES * 1e6]))
            chances = 1 / np.arange(1, ENTITIES + 1)
            keys = np.random.default_rng(1).choice(ENTITIES, 1_000_000, p=chances / chances.sum())
            for rows in (1, 64, 4096):
                batches = [made.batch(keys[k : k + rows]) for k in range(0, min(len(keys), 4_000 * rows) - rows + 1, rows)]
                times = np.full(rows, NOW_US)
                taken = [_each(stored, batches, times) / rows for _ in range(options.turns + 1)]
                goal = WARM_GOAL_NS if rows > 1 else None
                figures.append(figure("warm", f"look-ups, batches of {rows:,}, one core", "ns a row", taken[1:], goal))
            figures += _beside_warm(made, keys[:2_000], options.turns)
        finally:
            stored.close()
    return figures


def _beside_warm(made: Stand, keys: npt.NDArray[Any], turns: int) -> list[Figure]:
    held = {int(k): naive.Row(made.values[k].tolist(), NOW_US, NOW_US) for k in np.unique(keys)}
    fill = [float("nan")] * FEATURES

    def twin() -> list[list[float]]:
        return [
            naive.give(held[k], True, NOW_US, NOW_US, ttl=0, fill=fill, refuses=False, wall=False).values for k in keys.tolist()
        ]

    made.check_sdk(made.sdk(keys[:100]), keys[:100])
    if not np.array_equal(np.array(twin(), np.float32), made.values[keys]):
        raise WrongError("the naive twin does not say what was written")
    return [
        figure("warm", "beside: the naive twin, a dict, without hashing", "ns a row", _turns(twin, turns, len(keys), 1e9)),
        figure("warm", "beside: Feast's SDK", "ns a row", _turns(lambda: made.sdk(keys[:1_000]), turns, 1_000, 1e9)),
    ]


def cold(options: argparse.Namespace) -> list[Figure]:
    """Reads of entities that are not held, through the store and into the rows, beside Feast's SDK, in turns."""
    figures = []
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        for name, online_store in (("SQLite", SQLITE), ("Redis", _redis(server))):
            with stand(online_store, COLD_ROWS * COLD_BATCHES * (options.turns + 1)) as made:
                figures += _cold(name, made, options.turns)
    return figures


def _cold(name: str, made: Stand, turns: int) -> list[Figure]:
    """Each turn reads cards that neither has read before, one batch after another; who reads a batch first alternates."""
    order = np.random.default_rng(2).permutation(len(made.cards))
    figures = []
    for rows in (1, COLD_ROWS):
        ours, theirs, twins = [], [], []
        stored = made.opened(patience=60)
        try:
            for turn in range(turns + 1):
                count = COLD_BATCHES if rows == COLD_ROWS else 50
                chosen = [order[(turn * count + k) * rows :][:rows] for k in range(count)]
                times = np.full(rows, NOW_US)
                seconds = seconds_sdk = 0.0
                for k, which in enumerate(chosen):
                    batch = made.batch(which)
                    for sdk in (False, True) if (turn + k) % 2 else (True, False):
                        if sdk:
                            took, found = timed(made.sdk, which)
                            seconds_sdk += took
                            made.check_sdk(found, which)
                        else:
                            took, read = timed(stored.read, batch, times)
                            seconds += took
                            made.check(read.columns, which)
                twins.append(_by_twin(made, chosen) / count / rows * 1e6)
                ours.append(seconds / count / rows * 1e6)
                theirs.append(seconds_sdk / count / rows * 1e6)
        finally:
            stored.close()
        share = [own / other for own, other in zip(ours[1:], theirs[1:], strict=True)]
        goal = COLD_GOAL if rows == COLD_ROWS else None
        figures += [
            figure("cold", f"{name}, {rows:,} new entities", "µs a row", ours[1:]),
            figure("cold", f"{name}, {rows:,} new entities: the naive twin, by Feast's online_read", "µs a row", twins[1:]),
            figure("cold", f"{name}, {rows:,} new entities: Feast's SDK", "µs a row", theirs[1:]),
            figure("cold", f"{name}, {rows:,} new entities: share of the SDK's time", "", share, goal),
        ]
    return figures


def _by_twin(made: Stand, chosen: Sequence[npt.NDArray[Any]]) -> float:
    """Seconds that reading the cards takes cell by cell."""
    (view,) = views(made.store, made.repo, "bench")
    keys = [entity_keys(view)([made.cards.take(pa.array(which))]) for which in chosen]
    read = feast_reader(made.store)
    seconds, found = timed(lambda: [read(view, some) for some in keys])
    for which, fetched in zip(chosen, found, strict=True):
        made.check({f"profile__f{k}": fetched.values[k] for k in range(FEATURES)}, which)
    return seconds


def assembling(options: argparse.Namespace) -> list[Figure]:
    """The model's matrix from columns of stored (float32) and streaming (float64) features."""
    rows, stored, streaming = 4096, FEATURES, 6
    rng = np.random.default_rng(3)
    names = [f"f{k}" for k in range(stored + streaming)]
    columns = {name: rng.random(rows).astype(np.float32 if k < stored else np.float64) for k, name in enumerate(names)}
    spec = ModelSpec("bench", tuple(Input(name, "number") for name in names))
    batch = pa.RecordBatch.from_arrays([pa.array(np.arange(rows))], ["id"])
    expected = np.array([[columns[name][i] for name in names] for i in range(rows)], np.float32)
    matrix, _ = assemble(batch, spec, computed=columns)
    if not np.array_equal(matrix, expected):
        raise WrongError("the matrix is not its columns")
    cells = rows * len(names)

    def twin() -> list[list[float]]:
        return [[float(columns[name][i]) for name in names] for i in range(200)]

    def ours() -> None:
        for _ in range(200):
            assemble(batch, spec, computed=columns)

    def by_pandas() -> None:
        for _ in range(20):
            pd.DataFrame(columns).to_numpy(np.float32)

    if not np.array_equal(pd.DataFrame(columns).to_numpy(np.float32), expected):
        raise WrongError("pandas makes another matrix")
    times = _turns(ours, options.turns, 200 * cells, 1e9)
    return [
        figure("assemble", f"{rows:,} rows of {len(names)} numbers", "ns a cell", times, CELL_GOAL_NS),
        figure("assemble", "beside: the naive twin", "ns a cell", _turns(twin, options.turns, 200 * len(names), 1e9)),
        figure("assemble", "beside: pandas", "ns a cell", _turns(by_pandas, options.turns, 20 * cells, 1e9)),
    ]


def outage(options: argparse.Namespace) -> list[Figure]:
    """Batches of 8 events every 2 ms, one in 20 with an entity that is new, while Redis is well, killed, and back."""
    figures = []
    spans: dict[str, list[list[float]]] = {"well": [], "killed": [], "back": []}
    shares, fresh = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server(Path(folder)) as server,
        stand(_redis(server), COLD_ENTITIES) as made,
    ):
        server.save()
        for turn in range(options.turns):
            well, killed, back, again = _outage(made, server, np.random.default_rng(turn).permutation(COLD_ENTITIES))
            for name, spent in (("well", well), ("killed", killed), ("back", back)):
                spans[name].append([float(np.percentile(spent, q)) * 1e6 for q in (50, 99)])
            shares.append(spans["killed"][-1][1] / spans["well"][-1][1])
            fresh.append(again)
    for name, found in spans.items():
        for k, quantile in enumerate(("p50", "p99")):
            figures.append(figure("outage", f"a batch of 8, store {name}: {quantile}", "µs", [each[k] for each in found]))
    figures.append(figure("outage", "p99 while killed, by p99 before", "", shares, OUTAGE_GOAL))
    figures.append(figure("outage", "store back until no decision is flagged unread", "s", fresh))
    return figures


def _outage(made: Stand, server: RedisServer, order: npt.NDArray[Any]) -> tuple[list[float], list[float], list[float], float]:
    stored = made.opened(refresh_seconds=2.0)
    at = 8
    unread = stored.flags.index("unread:profile")

    def batches(seconds: float, flagged: list[int]) -> list[float]:
        nonlocal at
        spent, until, number = [], time.monotonic() + seconds, 0
        while time.monotonic() < until:
            which = order[:8].copy()
            if number % 20 == 0:
                which[7] = order[at % len(order)]
                at += 1
            batch = made.batch(which)
            took, read = timed(stored.read, batch, np.full(8, NOW_US))
            spent.append(took)
            flagged.append(int((read.flags >> unread & 1).sum()))
            number += 1
            time.sleep(0.002)
        return spent

    try:
        stored.read(made.batch(order[:8]), np.full(8, NOW_US))
        flagged: list[int] = []
        well = batches(2 * SECONDS, flagged)
        if any(flagged):
            raise WrongError("a decision was flagged though the store was well")
        server.kill()
        killed = batches(3 * SECONDS, flagged := [])
        if not any(flagged):
            raise WrongError("no decision was flagged while the store was down")
        server.start()
        began = time.monotonic()
        again, quiet = 0.0, 0
        while quiet < 100:
            batches(0.002, flagged := [])
            quiet = 0 if any(flagged) else quiet + 1
            again = again if quiet else time.monotonic() - began
            if time.monotonic() - began > 30:
                raise WrongError("the store has been back for 30 s and decisions are flagged still")
        return well, killed, batches(SECONDS, []), again
    finally:
        stored.close()


def _redis(server: RedisServer) -> str:
    return f"{{type: redis, connection_string: '127.0.0.1:{server.port}'}}"


def _each(stored: StoredFeatures, batches: Sequence[pa.RecordBatch], times: npt.NDArray[np.int64]) -> float:
    """Nanoseconds that one of the batches takes."""
    began = time.perf_counter()
    for batch in batches:
        stored.read(batch, times)
    return (time.perf_counter() - began) / len(batches) * 1e9


def _turns(call: Callable[[], object], turns: int, count: int, scale: float) -> list[float]:
    """What one of `count` takes in each turn, in seconds times `scale`; a first turn is not counted."""
    return [timed(call)[0] / count * scale for _ in range(turns + 1)][1:]
