"""Messages made from a pool when they are sent: large ones are not all kept.

A folder with `pool.arrow` (columns `before` and `after`, binary) beside its payloads.arrow (key and id, no values) has for
message k, of the id i, the value before[k % n] + i in decimal + after[k % n].
"""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

POOL = "pool.arrow"


class Pool:
    """The pool of a folder, in memory."""

    def __init__(self, before: list[bytes], after: list[bytes]) -> None:
        self.before, self.after = before, after

    def __len__(self) -> int:
        return len(self.before)

    @classmethod
    def read(cls, folder: Path) -> "Pool | None":
        """The folder's pool, None if it has none."""
        if not (folder / POOL).exists():
            return None
        table = pa.ipc.open_file(pa.memory_map(str(folder / POOL))).read_all()
        return cls(table["before"].to_pylist(), table["after"].to_pylist())

    def write(self, folder: Path) -> None:
        """Writes pool.arrow."""
        columns = [pa.array(self.before, pa.large_binary()), pa.array(self.after, pa.large_binary())]
        table = pa.table(columns, ["before", "after"])
        with pa.OSFile(str(folder / POOL), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def values(self, first: int, ids: Iterable[int]) -> list[bytes]:
        """The values of messages first, first + 1, ... with these ids."""
        before, after, n = self.before, self.after, len(self.before)
        return [b"%b%d%b" % (before[k % n], id, after[k % n]) for k, id in enumerate(ids, first)]
