"""What a recovery store holds: of each shard how many entities, and all of it as the state of a pipeline's groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.state import HASHES, arrays_of, newest
from features.streaming import Group
from sinks.staged import unpacked
from streams.ordering import NEVER, Held
from streams.routing import shard_number
from streams.shards import VERSION, Shards
from streams.store import RecoveryError, Store
from streams.wire import arrays_from_ipc

ROOM = 2**62


@dataclass(frozen=True)
class Shard:
    """What a store has of a shard: how many pages of how many, entities by group, rows that wait for their turn, since when
    (µs) the state holds everything (None: from the first event), and the snapshots' number."""

    shard: int
    pages: int
    of: int
    entities: Mapping[str, int]
    waiting: int
    begins: int | None
    number: int


def pages(store: Store, flow: str, shard: int) -> list[dict[str, Any]]:
    """The snapshots of a shard's pages. Raises RecoveryError for those of another version."""
    found = []
    for each in store.snapshots(f"{flow}.features", f"{shard:03d}.*"):
        page = each.load()
        if page["version"] != VERSION:
            raise RecoveryError(f"recovery store {store.folder}: expected state version {VERSION}, got {page['version']}")
        if page["shard"] is not None:
            found.append(page)
    return found


def held(store: Store, flow: str, entities: Sequence[str]) -> Iterator[Shard]:
    """What is held of each shard, one after another, since a shard may be large. entities: of the groups, in their order."""
    numbers = sorted({shard_number(size.key) for size in store.sizes() if size.step == f"{flow}.features"})
    for shard in numbers:
        snapshots = pages(store, flow, shard)
        if not snapshots:
            continue
        counts = {}
        for j, entity in enumerate(entities):
            pieces = pieces_of(snapshots, j)
            hashes = [arrays_of(piece, HASHES) for piece in pieces]
            counts[entity] = sum(int(np.count_nonzero(wanted)) for wanted in newest(pieces, hashes))
        last = max(snapshots, key=lambda page: int(page["number"]))
        begins = max(page["begins"] for page in snapshots)
        waiting = sum(len(arrays_from_ipc(rows)[-1]) for rows in last["held"]["rows"].values()) if last["held"] else 0
        yield Shard(shard, len(snapshots), last["pages"], counts, waiting, begins if begins > NEVER else None, last["number"])


def pieces_of(snapshots: Sequence[Mapping[str, Any]], group: int) -> list[dict[str, Any]]:
    """The pages and changes of a group, in any order."""
    return [page[kind][group] for page in snapshots for kind in ("groups", "changes")]


def whole(store: Store, flow: str, groups: Sequence[Group], shards: int) -> Shards:
    """All shards together, in memory. Raises RecoveryError for state of other features or another number of shards."""
    made = Shards(groups, shards, None)
    partitions = 0
    for shard in range(shards):
        for page in pages(store, flow, shard):
            partitions = max(partitions, len(page["held"]["seen"]) if page["held"] else 0)
            try:
                made.resume(page)
            except ValueError as error:
                raise RecoveryError(f"recovery store {store.folder}: {error}") from None
    made.held = Held(partitions, len(groups), ROOM) if partitions else None
    try:
        made.ready()
    except ValueError as error:
        raise RecoveryError(f"recovery store {store.folder}: {error}") from None
    return made


def staged(store: Store, flow: str) -> dict[int, int] | None:
    """With delivery exactly once, the messages by shard that are committed when the job starts again; None without."""
    found: dict[int, int] = {}
    seen = False
    for stream in ("sink", "reports"):
        for each in store.snapshots(f"{flow}.{stream}"):
            state = each.load()
            if state is not None:
                seen = True
                count = sum(len(part.values) for epoch in unpacked(stream, state) for part in epoch.messages)
                found[shard_number(each.key)] = found.get(shard_number(each.key), 0) + count
    return found if seen else None
