"""What a worker holds of the streaming features' state, and how its shards are snapshotted at the cost of what changed.

A snapshot of a shard is one page of it, in turn, and what changed since the snapshot before. Each is kept under the key of its
page until the next of that page replaces it. So the last snapshots of all pages hold every page as of some time and all changes
since: what is held of a million entities is written once in a round of all pages, not in every epoch. Where very many change in
an epoch, as while a backlog is worked off, several pages are taken in it (`at_once`), so that the changes to keep do not become
many times what is held.

A page need not be as of its snapshot: what changed since the snapshot before is among the changes, which count. So it is taken
before, between two batches (`ahead`), and what is left for the pause is less.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.state import Changes, Dump, State, hashes_of, pages_of, spans
from features.streaming import Group
from streams.ordering import NEVER, Held

VERSION = 7
PAGES, ROUND = 128, 131
KEPT, LEAST_KEPT, OF_HELD, MOST_AT_ONCE = 1_500_000, 500_000, 4, 32
"""Changes that are kept, at most and at least, and as many times what is held, where that is between the two. With fewer a
store is smaller and a start faster, but more pages are taken in an epoch, each of which costs a millisecond or two."""
EPOCHS = 16
"""Over which it is averaged how many rows an epoch has."""
FIRST_EPOCH = 1
"""Of a dataflow that Bytewax has never run."""

U64 = npt.NDArray[np.uint64]


def page_of(epoch: int) -> int:
    """The page that is snapshotted in an epoch, whoever asks. A round of all pages has a prime number of epochs, so that each
    comes in turn, too, where there are events in every second or sixtieth epoch alone."""
    return epoch % ROUND % PAGES


def at_once(page: int, changed: int, held: int) -> list[int]:
    """The pages to take in an epoch whose page this is, and in which so many of the entities held have changed: as many as it
    takes to keep not too many changes, which are those of a round, at most MOST_AT_ONCE, spread evenly, so that each comes as
    often."""
    kept = max(LEAST_KEPT, min(KEPT, OF_HELD * held))
    pages = 1
    while pages < MOST_AT_ONCE and changed * ROUND > kept * pages:
        pages *= 2
    return [(page + k * (PAGES // pages)) % PAGES for k in range(pages)]


class Ledger:
    """The snapshots of one shard: their count, at which of them each page was taken, and what changes are kept under its key:
    the snapshot that first had them, and the entities by group. Their hashes alone, since what has to be kept on is taken again
    as it is then."""

    def __init__(self) -> None:
        self.number = 0
        self._taken = np.zeros(PAGES, np.int64)
        self._changed: list[list[tuple[int, Sequence[U64]]]] = [[] for _ in range(PAGES)]

    def carried(self, page: int) -> list[Sequence[U64]]:
        """The changes under a page's key that would be lost when the page is taken again: those of entities whose own page was
        not taken since. There are none where pages are taken in turn, but a page misses its turn in an epoch without events,
        as may follow a short stop."""
        return [changed for _, changed in self._needed(page)]

    def take(self, page: int, after: int, number: int, fresh: Sequence[U64]) -> None:
        """A snapshot of this number has this page, taken after another snapshot, what is `carried`, and the changes of these
        entities."""
        self._changed[page] = [*self._needed(page), (number, fresh)]
        self.number = max(self.number, number)
        self._taken[page] = after

    def _needed(self, page: int) -> list[tuple[int, Sequence[U64]]]:
        taken = self._taken.copy()
        taken[page] = self.number + 1
        oldest = taken.min()
        return [
            (number, [each[number > taken[pages_of(each, PAGES)]] for each in changed])
            for number, changed in self._changed[page]
            if number > oldest
        ]


class Shards:
    """What one worker holds of every group, all its shards together. In event order it is fed by way of `held`."""

    def __init__(
        self, groups: Sequence[Group], shards: int, held: Held | None, most: int = 0, begins: int | None = None
    ) -> None:
        """most: entities that are held of a group; 0: as many as there are. begins: from when on (µs) the state holds
        everything, once what is to be read again is read; None: from the first event."""
        self.states = [State(group, most) for group in groups]
        self.held = held
        self._shards = shards
        self._known = begins is not None
        self.begins = NEVER if begins is None else begins
        self._rows = 0.0
        self._near = 2 * max((span for _, span in spans(groups)), default=0)
        self._heard: set[str] = set()
        self._seen: dict[str, tuple[bool, int]] = {}
        self._ledgers = defaultdict[int, Ledger](Ledger)
        self._resumed: dict[int, list[dict[str, Any]]] = {}
        self._woken: set[int] = set()
        self._due: dict[int, int] = {}
        self._batches = 0
        self._pages: dict[tuple[int, int], tuple[int, Sequence[Dump]]] = {}
        self._changes: dict[tuple[int, int], Sequence[Changes]] = {}
        self._changes_at = -1

    def at_once(self, page: int, rows: int) -> list[int]:
        """The pages to take in an epoch whose page this is, after so many rows: by what it was over the last epochs. Pages out
        of turn carry on changes whose own page has not been taken since, so an epoch after a short stop would stop the stream
        for longer."""
        held = [state.entities[0] for state in self.states]
        self._rows += (rows - self._rows) / EPOCHS
        return at_once(page, sum(min(int(self._rows), each) for each in held), sum(held))

    def wake(self, shard: int, page: int) -> None:
        """This page of a shard will be asked for at the end of the epoch."""
        self._woken.add(shard)
        if (shard, page) not in self._pages:
            self._due.setdefault(page, self._batches)

    def fed(self) -> None:
        """A batch is fed."""
        self._batches += 1

    @property
    def page_due(self) -> int | None:
        """A page that was woken two batches ago or more: the first of an epoch has waited for the pause. None of a shard
        without a snapshot, which does not know what has left it."""
        if self._due and self._woken <= self._ledgers.keys():
            return next((page for page, at in self._due.items() if at < self._batches - 1), None)
        return None

    def ahead(self) -> None:
        """Takes a page that is due, one at a time, if there is one."""
        if (page := self.page_due) is not None:
            self._take_page(page, self._woken)

    def snapshot(self, shard: int, page: int) -> dict[str, Any]:
        """A page of a shard, and what changed in the shard since its last snapshot, as plain data."""
        self.ready()
        ledger = self._ledgers[shard]
        number = ledger.number + 1
        if (shard, page) not in self._pages:
            self._take_page(page, (self._woken | {shard}) if self._woken else range(self._shards))
        after, paged = self._pages.pop((shard, page))
        changes = self._changes_of(shard, page)
        for one in paged:
            one["number"] = after
        for each in changes:
            each.changed["number"] = number
        ledger.take(page, after, number, [each.fresh for each in changes])
        return {
            "version": VERSION,
            "shard": shard,
            "shards": self._shards,
            "page": page,
            "pages": PAGES,
            "number": number,
            "begins": self.begins,
            "groups": paged,
            "changes": [each.changed for each in changes],
            "held": self.held.dump(shard, self._shards) if self.held is not None else None,
        }

    def _take_page(self, page: int, shards: Iterable[int]) -> None:
        """A page of these shards, by group, each as after its shard's last snapshot."""
        self._due.pop(page, None)
        by_group = [state.page(self._shards, page, PAGES) for state in self.states]
        for shard in shards:
            after = self._ledgers[shard].number if shard in self._ledgers else 0
            self._pages[shard, page] = after, [of_shard[shard] for of_shard in by_group]

    def _changes_of(self, shard: int, page: int) -> Sequence[Changes]:
        """The changes of a shard, by group. Those of all shards are taken when the first of an epoch asks.

        So all shards have to be asked for the same pages in an epoch, as `wakes` has it: what changed is under the first.
        """
        updates = sum(state.updates for state in self.states)
        if updates != self._changes_at or (shard, page) not in self._changes:
            for key in [key for key in self._changes if updates != self._changes_at or key[1] == page]:
                for state, left in zip(self.states, self._changes.pop(key), strict=True):
                    state.touch(left.fresh)
            self._changes_at = updates
            carried = [each for ledger in self._ledgers.values() for each in ledger.carried(page)]
            by_group = [state.changes(self._shards, [each[j] for each in carried]) for j, state in enumerate(self.states)]
            self._changes |= {(each, page): [of_shard[each] for of_shard in by_group] for each in range(self._shards)}
        return self._changes.pop((shard, page))

    def resume(self, snapshot: dict[str, Any]) -> None:
        """Takes a page's last snapshot; the shard is there when all have come, see `ready`.

        Raises ValueError for another number of shards or pages, or another version.
        """
        checked(snapshot)
        for name, expected in (("shards", self._shards), ("pages", PAGES)):
            if snapshot[name] != expected:
                raise ValueError(f"recovery store: expected state of {expected} {name}, got {snapshot[name]}")
        if snapshot["shard"] in self._ledgers:
            raise RuntimeError(f"features: a page of shard {snapshot['shard']} came after the first event")
        self._resumed.setdefault(snapshot["shard"], []).append(snapshot)

    def ready(self) -> None:
        """Puts together what was resumed, before anything is fed. Raises ValueError for other features."""
        resumed, self._resumed = self._resumed, {}
        for shard, snapshots in resumed.items():
            self._ledgers[shard] = ledger = Ledger()
            self.begins = max(self.begins, *(one["begins"] for one in snapshots))
            self._known = self._known or self.begins > NEVER
            for one in snapshots:
                after = min((paged["number"] for paged in one["groups"]), default=0)
                ledger.take(one["page"], after, one["number"], [hashes_of(changed) for changed in one["changes"]])
            for j, state in enumerate(self.states):
                pieces = [one["groups"][j] for one in snapshots]
                state.load(pieces + [one["changes"][j] for one in snapshots], shard)
            last = max(snapshots, key=lambda one: one["number"])
            if self.held is not None and last["held"] is not None:
                self.held.load(last["held"])

    def hear(self, partition: str, first: int) -> None:
        """Of a batch with events of a partition, the time of the first: the state begins with the earliest of the partitions'
        first events, if it is not known when it began."""
        if partition not in self._heard:
            self._heard.add(partition)
            if not self._known:
                self.begins = min(first, self.begins) if self.begins > NEVER else first

    def begins_near(self, time: int) -> int:
        """When the state begins, where that is so near before events of this time that windows may not be full, or NEVER."""
        return self.begins if time - self.begins < self._near else NEVER

    def clock(self, partition: str, seen_until: int, at_end: bool) -> int:
        """The time that the stream has passed as far as this worker knows, that of the slowest partition with a backlog, now
        that one of them has come so far."""
        _, before = self._seen.get(partition, (False, NEVER))
        self._seen[partition] = at_end, max(before, seen_until)
        backlog = [seen for at_end, seen in self._seen.values() if not at_end]
        return min(backlog) if backlog else max(seen for _, seen in self._seen.values())


def checked(snapshot: dict[str, Any]) -> dict[str, Any]:
    """The snapshot. Raises ValueError for one of another version."""
    if snapshot["version"] != VERSION:
        raise ValueError(f"recovery store: expected state version {VERSION}, got {snapshot['version']}")
    return snapshot
