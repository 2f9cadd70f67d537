"""What a log for machines says of decisions that are late or have no score, and of dead letters: a line a second of each."""

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from streams.budget import LATE
from streams.decide import FALLBACK, Work
from streams.replays import originals

EVERY_SECONDS = 1.0
WORDS = {
    "fallback": "without a score of the model, by the fallback",
    "late": "late",
    "shed": "late, by the fallback, as the model was not asked",
}


class Notices:
    """Says how many rows of a kind there were since its last line, and which is the first of the batch at hand.

    say: told in words, and with fields. topic: of the events. clock: seconds, monotonic.
    """

    def __init__(self, say: Callable[..., None], topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._topic, self._clock = say, topic, clock
        self._rows = Counter[str]()
        self._next = dict[str, float]()

    def decided(self, work: Work) -> None:
        """Takes note of what is flagged in a batch that is decided."""
        if not work.flags.any():
            return
        names, pace = work.deciding.flags, work.deciding.pace
        fallback = work.flags >> names.index(FALLBACK) & 1
        late = work.flags >> names.index(LATE) & 1 if pace else np.zeros_like(fallback)
        shed = fallback & late if pace and pace.sheds else np.zeros_like(fallback)
        for kind, rows in (("fallback", fallback - shed), ("late", late - shed), ("shed", shed)):
            if count := self._due(kind, int(rows.sum())):
                ids = work.ids(int(rows.argmax()))
                self._say(f"{count:,} decisions {WORDS[kind]}", level="warning", kind=kind, rows=count, **ids)

    def dead(self, letters: pa.RecordBatch) -> None:
        """Takes note of dead letters (streams/decode.py). Their reasons quote messages, and stay where those are."""
        if count := self._due("dead_letter", letters.num_rows):
            columns = {"code": letters["code"], "partition": letters["_partition"], "offset": originals(letters)}
            first = {name: column[0].as_py() for name, column in columns.items()}
            self._say(f"{count:,} dead letters", level="warning", kind="dead_letter", rows=count, topic=self._topic, **first)

    def _due(self, kind: str, rows: int) -> int:
        """How many rows to speak of now that there are so many more: 0 where there are none, or it is not time yet."""
        self._rows[kind] += rows
        now = self._clock()
        if not rows or now < self._next.get(kind, now):
            return 0
        self._next[kind] = now + EVERY_SECONDS
        return self._rows.pop(kind)
