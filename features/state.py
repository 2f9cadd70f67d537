"""What a worker knows of a group of streaming features: which entities there are, each with a slot, and what is kept by slot.

A snapshot costs by what changed: `dump` gives one page of a shard, the entities whose hashes have the same highest bits, and
`changed` what was updated or left since it was last asked. Pages dumped in turn and all changes since the oldest of them are
the whole; `load` puts them together.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.growing import Growing
from features.spec import Streaming, Window, seconds
from features.streaming import Cut, Group
from features.tiles import MICROSECONDS, Arrays, stores
from kernels.entities import cpu as entities

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
Dump = dict[str, Any]

STATE_VERSION = 7
UNBOUNDED = 2**62
FEW = 10_000
"""Entities that a state may hold before idle ones have to leave."""
REMEMBERED = 256
OF_TILES, OF_REGISTERS = ("tiles", "filled"), ("registers", "ranks")
"""What a store dumps for each of its tiles, and for each register of those that is not zero; the rest is for each slot."""
HASHES = ("keys", "gone")
"""What a dump has the hashes of entities in: of those held, and of those that have left."""
NOTHING = np.empty(0, np.uint64)
CODEC = "lz4"


class Changes(NamedTuple):
    """What changed of a shard, and the entities that did since this was asked before, in or out of the state."""

    changed: Dump
    fresh: U64


class State:
    """What a worker knows of one group.

    It may hold several shards at once; what is dumped and loaded is of one shard, the entities whose hash is that number
    modulo the number of shards.
    """

    def __init__(self, group: Group, most: int = 0) -> None:
        """most: entities held; one more, and one that had no update for long leaves. 0: as many as there are."""
        self.group = group
        self._most = most or UNBOUNDED
        self._clock = -UNBOUNDED
        self._idle = retention(group) * MICROSECONDS
        self._table, self._books = entities.new_table(), entities.new_books()
        self._pinned, self._free = Growing((), np.int32), Growing((), np.int32)
        self._stores = stores(group)
        self._features = [repr(feature) for feature in group.features]
        self._dumped: set[int] = set()
        self._touched: list[U64] = []
        self.updates = 0

    def update(self, cut: Cut, clock: int | None = None) -> F64:
        """Feeds a cut; returns the group's features [f, rows that read], NaN where there is no value.

        clock: the time in microseconds that the stream is known to have passed, by which entities count as idle; if not given,
        the latest of the rows fed before.
        """
        _, hashes, times, bits, values, _ = cut
        self.updates += 1
        for array in (hashes, times, bits, values):
            array.flags.writeable = False  # as some are: else Numba compiles for each kind, mid-stream
        since = (self._clock if clock is None else clock) - self._idle
        slots = self._slots(hashes, times, bits, since // MICROSECONDS, min(FEW, self._most), self._most)
        out = np.empty((len(self.group.names), int(np.count_nonzero(bits & 1))))
        for store in self._stores:
            store.update(slots, times, values, bits, out)
        if clock is None and len(times):
            self._clock = max(self._clock, int(times.max()))
        if self._dumped:
            self.touch(hashes[bits > 1])
        return out

    @property
    def late(self) -> tuple[int, int]:
        """Late updates used, and dropped, counted once for each window."""
        used = dropped = 0
        for store in self._stores:
            used, dropped = used + store.used_late, dropped + store.dropped_late
        return used, dropped

    @property
    def entities(self) -> tuple[int, int, int]:
        """How many entities are held, have expired, and were evicted."""
        books = self._books
        return int(books[entities.LIVE]), int(books[entities.EXPIRED]), int(books[entities.EVICTED])

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays, with the room that they have to grow."""
        own = (self._table, self._books, self._pinned.array, self._free.array)
        return sum(array.nbytes for array in own) + sum(store.nbytes for store in self._stores)

    def dump(self, shard: int = 0, shards: int = 1, page: int = 0, pages: int = 1, number: int = 0) -> Dump:
        """A page of a shard as plain data: a versioned dict, whose arrays `arrays_of` gives. pages: a power of two; number: of
        the snapshot that it is as of, by which `load` knows what is newer."""
        return self._packed(self._members(shard, shards, page, pages), np.empty(0, np.uint64), (page, pages), number)

    def changed(self, shard: int = 0, shards: int = 1, number: int = 0) -> Dump:
        """The entities of a shard that were updated or have left since this was last asked; the first time, all."""
        if shard not in self._dumped:
            self._dumped.add(shard)
            return self._packed(self._members(shard, shards, 0, 1), np.empty(0, np.uint64), None, number)
        touched = _distinct(self._touched)
        mine = touched % np.uint64(shards) == shard
        self._touched, keys = [touched[~mine]], touched[mine]
        places = np.empty(len(keys), np.int64)
        entities.find(self._table, keys, places)
        return self._packed(places[places >= 0], keys[places < 0], None, number)

    def page(self, shards: int, page: int, pages: int) -> list[Dump]:
        """`dump` of a page of every shard at once, at a fraction of the cost of one after the other; of number 0."""
        members = self._members(0, 1, page, pages)
        of = _by_shard(self._table[members, 0], shards)
        parts = self._parts(members[of.order], of.edges)
        return [self._dump_of(part | {"gone": NOTHING}, (page, pages), 0) for part in parts]

    def changes(self, shards: int, carried: Sequence[U64] = ()) -> list[Changes]:
        """`changed` of every shard at once, likewise. carried: entities that are to be among them as they are now, too."""
        whole = {shard: self.changed(shard, shards) for shard in range(shards) if shard not in self._dumped}
        fresh = _distinct(self._touched)
        touched = _distinct([fresh, *carried]) if carried else fresh
        self._touched, news = [], _by_shard(fresh, shards)
        places = np.empty(len(touched), np.int64)
        entities.find(self._table, touched, places)
        held, gone = _by_shard(touched[places >= 0], shards), _by_shard(touched[places < 0], shards)
        parts = self._parts(places[places >= 0][held.order], held.edges)
        left = touched[places < 0][gone.order]
        made = []
        for shard, part in enumerate(parts):
            changed = self._dump_of(part | {"gone": left[gone.edges[shard] : gone.edges[shard + 1]]}, None, 0)
            mine = fresh[news.order[news.edges[shard] : news.edges[shard + 1]]]
            made.append(Changes(whole.get(shard, changed), hashes_of(whole[shard]) if shard in whole else mine))
        return made

    def touch(self, hashes: U64) -> None:
        """These entities count as changed, held or not."""
        self._touched.append(hashes)
        if len(self._touched) > REMEMBERED:
            self._touched = [_distinct(self._touched)]

    def load(self, pieces: Sequence[Dump], shard: int | None = None) -> None:
        """Adds a shard from pages and changes, in any order. Raises ValueError for a dump of another version or other features.

        shard: its number; what is `changed` is then counted from here.
        """
        for piece in pieces:
            if piece["version"] != STATE_VERSION:
                raise ValueError(f"state of {self.group.entity}: expected version {STATE_VERSION}, got {piece['version']}")
            if piece["features"] != self._features:
                expected = f"expected the features {self._features}, got {piece['features']}"
                raise ValueError(f"state of {self.group.entity}: {expected}")
            self._clock = max(self._clock, piece["clock"])
        held = [arrays_of(piece) for piece in pieces]
        for arrays, wanted in zip(held, newest(pieces, held), strict=True):
            keys, times = arrays["keys"][wanted], arrays["seconds"][wanted].astype(np.int64) * MICROSECONDS
            slots = np.full(len(wanted), -1, np.int32)
            slots[wanted] = self._slots(keys, times, np.full(len(keys), 2, np.uint32), -UNBOUNDED, UNBOUNDED, UNBOUNDED)
            for j, store in enumerate(self._stores):
                store.load(slots, {name[len(f"{j}.") :]: array for name, array in arrays.items() if name.startswith(f"{j}.")})
        if shard is not None:
            self._dumped.add(shard)

    def _members(self, shard: int, shards: int, page: int, pages: int) -> I64:
        places = np.empty(len(self._table), np.int64)
        return places[: entities.members(self._table, shard, shards, page, pages, places)]

    def _packed(self, places: I64, gone: U64, page: tuple[int, int] | None, number: int) -> Dump:
        (arrays,) = self._parts(places, np.array([0, len(places)]))
        return self._dump_of(arrays | {"gone": gone}, page, number)

    def _parts(self, places: I64, edges: I64) -> list[Arrays]:
        """What is held at places of the table, cut at edges [parts + 1]."""
        entries = self._table[places]
        slots = (entries[:, 1] & entities.SLOT).astype(np.int64)
        held = [store.dump(slots) for store in self._stores]
        parts: list[Arrays] = []
        for a, b in pairwise(edges.tolist()):
            parts.append({"keys": entries[a:b, 0], "seconds": (entries[a:b, 1] >> entities.HALF).astype(np.uint32)})
        for j, arrays in enumerate(held):
            of_tiles = np.append(0, np.cumsum(arrays["sizes"], dtype=np.int64))[edges] if "sizes" in arrays else edges
            filled = np.append(0, np.cumsum(arrays["filled"], dtype=np.int64)) if "filled" in arrays else edges
            for name, array in arrays.items():
                at = of_tiles if name in OF_TILES else filled[of_tiles] if name in OF_REGISTERS else edges
                for part, (a, b) in zip(parts, pairwise(at.tolist()), strict=True):
                    part[f"{j}.{name}"] = array[a:b]
        return parts

    def _dump_of(self, arrays: Arrays, page: tuple[int, int] | None, number: int) -> Dump:
        # by size of item, so that each begins at a multiple of its own
        arrays = dict(sorted(arrays.items(), key=lambda one: one[1].itemsize, reverse=True))
        return {
            "version": STATE_VERSION,
            "features": self._features,
            "clock": self._clock,
            "page": page,
            "number": number,
            "arrays": {name: (array.dtype.str, array.shape) for name, array in arrays.items()},
            "data": _compressed(arrays.values()),
        }

    def _slots(self, hashes: U64, times: I64, bits: npt.NDArray[np.uint32], since: int, few: int, most: int) -> I32:
        """The slot of each entity [n]; those that update get one if they have none, those that only read do not (-1)."""
        n, books = len(hashes), self._books
        out = np.empty(n, np.int32)
        used, held = int(books[entities.USED]), int(books[entities.LIVE])
        leaving = min(held, 2 * entities.LOOK * n)
        freed, gone = np.empty(leaving, np.int32), np.empty(leaving, np.uint64)
        self._table = entities.grown(self._table, held + n)
        self._pinned.grow(used + n)
        self._free.grow(used + n)
        room = self._table, self._pinned.array, self._free.array, books
        count = entities.place(*room, hashes, times, bits, since, few, most, out, freed, gone)
        if count:
            for store in self._stores:
                store.clear(freed[:count])
            if self._dumped:
                self.touch(gone[:count])
        if books[entities.USED] > used:
            for store in self._stores:
                store.grow(int(books[entities.USED]))
        return out


class _ByShard(NamedTuple):
    """Keys in the order of their shards, each as they were; those of shard s are from edges[s] to edges[s + 1]."""

    order: I64
    edges: I64


def _by_shard(keys: U64, shards: int) -> _ByShard:
    of = (keys % np.uint64(shards)).astype(np.uint16)  # which numpy sorts by radix
    return _ByShard(np.argsort(of, kind="stable"), np.append(0, np.cumsum(np.bincount(of, minlength=shards))))


def _distinct(keys: Sequence[U64]) -> U64:
    """Those that are in any, sorted: at an eighth to a tenth of the time of np.unique, which numpy 2.4 does by a hash table."""
    if not keys:
        return NOTHING
    every = np.sort(np.concatenate(keys))
    return every[np.append(True, every[1:] != every[:-1])] if len(every) else every


def _compressed(arrays: Iterable[npt.NDArray[Any]]) -> bytes:
    """To a third at 1 GB/s: what a snapshot writes, its pause waits for. All in one: each call takes as long as 10 KB."""
    data: bytes = pa.compress(b"".join(np.ascontiguousarray(array).data for array in arrays), CODEC, asbytes=True)
    return data


def arrays_of(dump: Dump, names: Iterable[str] | None = None) -> Arrays:
    """The arrays of a dump, or those of these names. It has them as (dtype, shape), and one after the other in its data."""
    kinds = {name: (np.dtype(kind), shape) for name, (kind, shape) in dump["arrays"].items()}
    sizes = [kind.itemsize * math.prod(shape) for kind, shape in kinds.values()]
    data = pa.decompress(dump["data"], sum(sizes), CODEC, asbytes=True)
    begins = dict(zip(kinds, accumulate(sizes, initial=0), strict=False))
    return {
        name: np.frombuffer(data, kind, math.prod(shape), begins[name]).reshape(shape)
        for name, (kind, shape) in kinds.items()
        if names is None or name in names
    }


def hashes_of(changed: Dump) -> U64:
    """The entities of a dump, those that are gone as well."""
    return np.concatenate(list(arrays_of(changed, HASHES).values()))


def pages_of(hashes: U64, pages: int) -> I64:
    """The page of each entity: the highest bits of its hash. pages: a power of two."""
    return (hashes >> np.uint64(65 - pages.bit_length())).astype(np.int64) if pages > 1 else np.zeros(len(hashes), np.int64)


def newest(pieces: Sequence[Dump], held: Sequence[Arrays]) -> list[npt.NDArray[np.bool_]]:
    """Which of the keys of each piece of a shard are to be loaded, bool [keys].

    An entity is as its latest piece says, held or gone; a page says it of all its entities, as of its number.
    """
    pages = max((piece["page"][1] for piece in pieces if piece["page"]), default=1)
    based = np.full(pages, -1)
    for piece in pieces:
        if piece["page"]:
            based[piece["page"][0]] = max(based[piece["page"][0]], piece["number"])
    keys = [array for arrays in held for array in (arrays["keys"], arrays["gone"])]
    sizes = [len(array) for array in keys]
    every = np.concatenate([*keys, np.empty(0, np.uint64)])
    number = np.repeat([piece["number"] for piece in pieces for _ in range(2)], sizes)
    of_page = np.repeat([piece["page"] is not None for piece in pieces for _ in range(2)], sizes)
    stays = np.repeat([kind == "keys" for _ in pieces for kind in ("keys", "gone")], sizes)
    base = based[pages_of(every, pages)]
    current = np.flatnonzero((number > base) | (of_page & (number == base)))
    order = current[np.lexsort((number[current], every[current]))]
    latest = order[np.append(every[order][1:] != every[order][:-1], True)[: len(order)]]
    wanted = np.zeros(len(every), np.bool_)
    wanted[latest] = stays[latest]
    return list(np.split(wanted, np.cumsum(sizes)[:-1])[::2])


def spans(groups: Sequence[Group]) -> tuple[tuple[str, int], ...]:
    """What the features of each length and entity are named by, as in 2h_by_origin, and the microseconds before an event that
    they see."""
    found: dict[str, int] = {}
    for group in groups:
        for each in group.features:
            name = f"{each.over if isinstance(each, Window) else each.within}_by_{group.entity}"
            found[name] = max(found.get(name, 0), sees(each) * MICROSECONDS)
    return tuple(found.items())


def sees(feature: Streaming) -> int:
    """The seconds before an event that a feature sees."""
    return seconds(feature.over) + feature.tile_seconds if isinstance(feature, Window) else seconds(feature.within)


def retention(group: Group) -> int:
    """Seconds after which an update cannot be seen any more by any feature of the group."""
    return max(map(sees, group.features))
