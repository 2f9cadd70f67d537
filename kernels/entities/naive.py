"""Which slots may be given out: the definition. Who leaves is a choice among those who may: it is judged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Entities:
    """Which entities are held, by hash: the slot, and the latest second of the updates.

    few: below so many nobody leaves; most: so many are held, and as many as a batch has.
    """

    few: int
    most: int
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    expired: int = 0
    evicted: int = 0

    def place(
        self, events: Iterable[tuple[int, int, bool]], since: int, slots: Sequence[int], freed: Iterable[int]
    ) -> list[str]:
        """What is wrong with giving (hash, second, updates) of a batch these slots, and freeing those."""
        faults = []
        events = list(events)
        of_slot = {slot: entity for entity, (slot, _) in self.held.items()}
        batch = {hash for hash, _, _ in events}
        before = len(self.held)
        for slot in freed:
            entity = of_slot.pop(slot, None)
            if entity is None or entity in batch:
                faults.append(f"slot {slot} was freed: nobody's, or of this batch")
            elif self.held.pop(entity)[1] < since:
                self.expired += 1
            else:
                self.evicted += 1
        left = before - len(self.held)
        for (hash, second, updates), slot in zip(events, slots, strict=True):
            if hash and hash not in self.held and updates:
                if slot < 0 or any(slot == taken for taken, _ in self.held.values()):
                    faults.append(f"new entity {hash} got slot {slot}")
                self.held[hash] = slot, second
            expected = self.held[hash][0] if hash in self.held else -1
            if slot != expected:
                faults.append(f"entity {hash} is in slot {expected}, got {slot}")
            if hash in self.held and updates:
                self.held[hash] = expected, max(second, self.held[hash][1])
        if left and before + len(batch) < self.few:
            faults.append(f"{left} left of {before}")
        return faults
