"""What is sent, and what must come back: a workload gives messages, says which of them are answered, and checks the answers.

A workload's messages are kept in a folder: `payloads.arrow`, an Arrow IPC file with columns `key` and `value` (binary) and `id`
(int64: the id of the answer that the message gets, -1 where it gets none), and whatever the workload needs to check answers.
Every id is there once. Where messages are large, `value` is left out and `pool.arrow` lies beside it (bench/pool.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

I64 = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]
PAYLOADS = "payloads.arrow"


@dataclass(frozen=True)
class Prepared:
    """The first `messages` messages of a folder. bytes_mean: of their values."""

    folder: Path
    messages: int
    bytes_mean: float
    seed: int = 0

    @property
    def payloads(self) -> Path:
        """The Arrow IPC file with key, value and id."""
        return self.folder / PAYLOADS

    def ids(self) -> I64:
        """i64 [messages]: the id of each message's answer, -1 where none is due."""
        with pa.memory_map(str(self.payloads)) as file:
            column = pa.ipc.open_file(file).read_all().column("id")
            return np.array(column.slice(0, self.messages).to_numpy())


@dataclass(frozen=True)
class Checked:
    """Output messages read: ids i64 [n], -1 for what is no answer; wrong bool [n]; why: of the first wrong one; passed_on: bool
    [n], the events themselves, without a score: right from a relay and from nobody else."""

    ids: I64
    wrong: npt.NDArray[np.bool_]
    why: str = ""
    passed_on: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Job:
    """How headrace runs a workload: the text of a pipeline file that defines `job`, with {input} and {output} for the topics,
    the topics it needs beside those two (same placeholders), settings as environment variables (HEADRACE_*), and how many
    shards its state has."""

    pipeline: str
    topics: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    shards: int = 8


class Workload(Protocol):
    """One kind of load. passes: what a message contains exactly if it is answered, for the relay; empty: all are."""

    name: str
    passes: str

    @property
    def width(self) -> int:
        """The number of the model's inputs. After `ready`."""

    def ready(self, home: Path, progress: Progress) -> None:
        """Makes what must be there once: model, feature repo. home: where it is kept, `.headrace` by default."""

    def prepare(self, messages: int, progress: Progress) -> Prepared:
        """At least so many messages with their answers, from a cache where they were made before. After `ready`."""

    def model(self) -> Path:
        """The folder with model.onnx (and model.json). After `ready`."""

    def repo(self) -> Path | None:
        """The Feast repo, if there is one. After `ready`."""

    def job(self) -> Job:
        """headrace's own pipeline. After `ready`."""

    def check(self, prepared: Prepared, values: Sequence[bytes], *, ordered: bool) -> Checked:
        """Reads output messages and compares them with what is expected. ordered: the system read the messages in the order
        in which they were sent (one partition); where it did not, answers that depend on the order are not compared."""


def write_payloads(folder: Path, keys: Sequence[bytes | None], values: Sequence[bytes], ids: I64) -> None:
    """Writes `payloads.arrow` as one record batch per 100,000 messages."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "key": pa.array(keys, pa.binary()),
        "value": pa.array(values, pa.large_binary()),
        "id": pa.array(ids, pa.int64()),
    }
    table = pa.table(columns)
    with pa.OSFile(str(folder / PAYLOADS), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100_000)


def load(name: str) -> Workload:
    """The workload of that name: the attribute `workload` of bench.workloads.NAME. Raises LookupError."""
    import importlib

    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if name not in known:
        raise LookupError(f"no workload {name}: expected one of {', '.join(known)}")
    found: Workload = importlib.import_module(f"bench.workloads.{name}").workload
    return found
