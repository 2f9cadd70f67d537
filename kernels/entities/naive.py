"""Slots by a dict: the definition."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Entities:
    """Which entities are held, by hash: the slot and the latest time of its updates. Slots are given in turn, freed ones first,
    the last freed before the others."""

    few: int
    most: int
    look: int
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    used: int = 0
    hand: int = 0
    expired: int = 0
    evicted: int = 0

    def place(self, events: Iterable[tuple[int, int, bool]], since: int) -> tuple[list[int], list[int]]:
        """The slot of each (hash, time, updates) of a batch, -1 where it has none, and the slots that were freed."""
        slots, freed = [], []
        batch: set[int] = set()
        before = self.used
        for hash, time, updates in events:
            if hash and hash not in self.held and updates:
                left = self._leaving(batch, before, since)
                for entity in left:
                    self.free.append(self.held.pop(entity)[0])
                freed += self.free[len(self.free) - len(left) :]
                if self.free:
                    slot = self.free.pop()
                else:
                    slot, self.used = self.used, self.used + 1
                self.held[hash] = slot, time
            elif hash in self.held and updates:
                self.held[hash] = self.held[hash][0], max(time, self.held[hash][1])
            slots.append(self.held[hash][0] if hash in self.held else -1)
            if hash in self.held:
                batch.add(hash)
        return slots, freed

    def _leaving(self, batch: set[int], before: int, since: int) -> list[int]:
        """The entities that leave, so that a new one can come."""
        of_slot = {slot: entity for entity, (slot, _) in self.held.items()}
        looked = []
        for _ in range(min(self.look, before) if self.used >= self.few else 0):
            if self.hand in of_slot and of_slot[self.hand] not in batch and of_slot[self.hand] not in looked:
                looked.append(of_slot[self.hand])
            self.hand = (self.hand + 1) % before
        left = [entity for entity in looked if self.held[entity][1] < since]
        self.expired += len(left)
        rest = [entity for entity in looked if entity not in left]
        if rest and len(self.held) - len(left) >= self.most:
            self.evicted += 1
            left.append(min(rest, key=lambda entity: self.held[entity][1]))
        return left
