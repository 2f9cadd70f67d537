"""What a worker's partitions brought, as one batch: a step costs as much for a few rows of one as for those of all."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.memo import Memo
from streams.exchange import News
from streams.ordering import NEVER
from streams.polling import Polled
from streams.replays import alike, has_replays, originals
from streams.routing import shard_number
from streams.source import raw_batch


def rounds(polls: Sequence[tuple[str, Polled]], apart: bool) -> Sequence[Sequence[tuple[str, Polled]]]:
    """The polls (partition, Polled) by what is decoded together: all.

    apart: each for itself, as are those of which some rows only feed the state.
    """
    if len(polls) == 1 or apart or any(polled.decide_from for _, polled in polls):
        return [[poll] for poll in polls]
    return [polls]


def as_one(polls: Sequence[tuple[str, Polled]]) -> pa.RecordBatch:
    """The messages of polls, one after another, as a raw batch (streams/source.py)."""
    batches = [polled.messages for _, polled in polls if isinstance(polled.messages, pa.RecordBatch)]
    if batches:
        return batches[0] if len(batches) == 1 else pa.concat_batches(alike(batches))
    return raw_batch([(polled.messages, shard_number(name), polled.polled_at) for name, polled in polls])


def news_of(polls: Sequence[tuple[str, Polled]], rows: Memo, times: npt.NDArray[np.int64]) -> list[News]:
    """How far each partition has come; times: int64 [n], µs, of the n rows decoded.

    What a replay is about is long ago: no partition begins with one.
    """
    firsts = times
    if has_replays(rows.batch):
        firsts = np.where(originals(rows.batch).to_numpy() == rows.batch.column("_offset").to_numpy(), times, NEVER)
    if len(polls) == 1:
        ((name, polled),) = polls
        first, last = (_first(firsts), int(times.max())) if len(times) else (NEVER, NEVER)
        return [News(name, first, last, polled.at_end)]
    found = list(runs(rows.column("_partition").to_numpy()))
    lasts = np.maximum.reduceat(times, [a for _, a, _ in found]).tolist() if found else []
    seen = {number: (_first(firsts[a:b]), last) for (number, a, b), last in zip(found, lasts, strict=True)}
    return [News(name, *seen.get(shard_number(name), (NEVER, NEVER)), polled.at_end) for name, polled in polls]


def _first(times: npt.NDArray[np.int64]) -> int:
    """The first that is not NEVER."""
    return int(times[0]) if times[0] > NEVER else int(times[(times > NEVER).argmax()])


def runs(values: npt.NDArray[np.int32]) -> Iterator[tuple[int, int, int]]:
    """(value, start, end) of each run of equal values."""
    if len(values):
        edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
        for start, end in pairwise(edges):
            yield int(values[start]), start, end
