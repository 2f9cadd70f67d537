"""The files of a record: a log that survives a kill, sealed into Parquet files each of which holds the hash of the one before.

A chain is the folder of one worker. What is being written is `_NUMBER-DAY.log`: frames, each with its length, its checksum
and an Arrow IPC stream of its own, so that what a kill cut off is seen and left out. A log that is large enough, or of another
day, becomes `NUMBER-DAY.parquet`, with the name and SHA-256 of the file before it in its metadata.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 1
KEY = b"headrace.record"
LOG, SEALED, HALF = ".log", ".parquet", ".half"
HEADER = struct.Struct("<QQ")
ROWS_IN_A_GROUP = 122_880
OWN = ("decision_id", "event_id")
STORED = "__"
RANGES = ("decision_id", "event_id", "event_time", "decided_at", "partition", "offset", "score")


class RecordError(RuntimeError):
    """The record cannot be written or read, or is not what was written; the message says which file and why."""


@dataclass(frozen=True, order=True)
class Segment:
    """The number of a file in its chain, counted from 1, and the day (UTC, YYYY-MM-DD) on which it was begun."""

    number: int
    day: str

    def path(self, chain: Path, suffix: str) -> Path:
        """The file in a chain. What is not finished begins with "_", which readers of folders of Parquet files pass over."""
        return chain / f"{'' if suffix == SEALED else '_'}{self.number:08d}-{self.day}{suffix}"

    @classmethod
    def of(cls, path: Path) -> "Segment":
        """The segment of a file's name. Raises RecordError for another name."""
        number, _, day = path.stem.removeprefix("_").partition("-")
        if not number.isdigit() or len(day) != len("2000-01-01"):
            raise RecordError(f"record: expected a file named NUMBER-DAY{path.suffix}, got {path}")
        return cls(int(number), day)


def in_order(folder: Path, suffix: str) -> list[Path]:
    """The files of a chain with this suffix, by number."""
    return sorted(folder.glob(f"*{suffix}"), key=Segment.of)


def chains(folder: Path) -> list[Path]:
    """The chains of a record, by worker; the folder itself, if it is one. Raises RecordError where there is none."""

    def is_chain(one: Path) -> bool:
        return any(one.glob(f"*{SEALED}")) or any(one.glob(f"*{LOG}"))

    found = [folder] if is_chain(folder) else sorted(one for one in folder.glob("worker-*") if is_chain(one))
    if not found:
        raise RecordError(f"no record in {folder}: expected the folders worker-0, ... with .parquet or .log files in them")
    return found


class Frames:
    """Writes batches to a file as frames, from one piece of memory that is used again and again."""

    def __init__(self) -> None:
        self._room = pa.allocate_buffer(1 << 20)

    def write(self, file: IO[bytes], batch: pa.RecordBatch) -> int:
        """Appends a batch as one frame; returns its bytes."""
        counted = pa.MockOutputStream()
        _stream(counted, batch)
        size = counted.size()
        if size > self._room.size:
            self._room = pa.allocate_buffer(2 * size)
        _stream(pa.FixedSizeBufferWriter(self._room), batch)
        data = memoryview(self._room)[:size]
        file.write(HEADER.pack(size, checksum(data)))
        file.write(data)
        return HEADER.size + size


def _stream(target: Any, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_stream(target, batch.schema) as writer:
        writer.write_batch(batch)


def checksum(data: memoryview) -> int:
    """The sum of the words of data, whose length is a multiple of 8: a frame that a crash left half on disk has another."""
    return int(np.frombuffer(data, np.uint64).sum(dtype=np.uint64))


def read_frames(path: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The batches of a log with the place where each ends, up to the first frame that is not whole."""
    size, end = path.stat().st_size, 0
    if size == 0:
        return
    with pa.memory_map(str(path)) as file:
        while end + HEADER.size <= size:
            length, expected = HEADER.unpack(file.read(HEADER.size))
            end += HEADER.size + length
            if length == 0 or length % 8 or end > size:
                return
            data = file.read_buffer(length)
            if checksum(memoryview(data)) != expected:
                return
            yield pa.ipc.open_stream(data).read_next_batch(), end


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def described(path: Path) -> dict[str, Any]:
    """What a sealed file says of itself. Raises RecordError for one that is not sealed by `seal`."""
    try:
        content = (pq.read_schema(path).metadata or {}).get(KEY)
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path}: cannot be read as Parquet: {error}") from None
    if content is None:
        raise RecordError(f"{path}: expected {KEY.decode()} in its metadata, got none")
    found: dict[str, Any] = json.loads(content)
    if found.get("format") != FORMAT:
        raise RecordError(f"{path}: expected format {FORMAT}, got {found.get('format')}")
    return found


def drop_empty(chain: Path) -> None:
    """Removes the last log of a chain if it holds no row, as after a kill just when it was begun: its number is free again."""
    for log in in_order(chain, LOG)[-1:]:
        if not sealed(log).exists() and next(read_frames(log), None) is None:
            log.unlink()


def sealed(log: Path) -> Path:
    """The Parquet file that a log becomes."""
    return Segment.of(log).path(log.parent, SEALED)


def seal(log: Path, shape: Callable[[pa.Table], pa.Table]) -> Path | None:
    """Makes a log the next Parquet file of its chain, and removes it; None where it holds no row.

    shape: from rows of the log to those of the file, whose schema is the same each time; what the metadata of the log's schema
    says under `KEY` goes into that of the file. The file is there whole or not at all: it gets its name when it is on disk.
    Call it for the logs of a chain in order.
    """
    target, half = sealed(log), log.with_suffix(HALF)
    if not target.exists() and not _written(log, shape, half):
        log.unlink()
        return None
    if not target.exists():
        half.rename(target)
        sync_folder(log.parent)
    log.unlink()
    return target


def _written(log: Path, shape: Callable[[pa.Table], pa.Table], target: Path) -> bool:
    segment = Segment.of(log)
    before = [path for path in in_order(log.parent, SEALED) if Segment.of(path) < segment]
    place = {
        "format": FORMAT,
        "number": segment.number,
        "day": segment.day,
        "previous": {"file": before[-1].name, "sha256": sha256(before[-1])} if before else None,
    }
    writer = None
    for table in _in_groups(log):
        rows = shape(table)
        if writer is None:
            schema = rows.schema.remove_metadata()
            told = json.loads(table.schema.metadata[KEY]) | place
            writer = pq.ParquetWriter(
                target, schema, compression="zstd", compression_level=1, use_dictionary=_coded(schema),
                write_statistics=[name for name in RANGES if name in schema.names], store_schema=False,
            )  # fmt: skip
        writer.write_table(rows.cast(schema))
    if writer is None:
        return False
    writer.add_key_value_metadata({KEY: json.dumps(told).encode()})
    writer.close()
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return True


def _in_groups(log: Path) -> Iterator[pa.Table]:
    """The rows of a log, some hundred thousand at a time; those of one table have one schema."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch, _ in read_frames(log):
        if waiting and (rows >= ROWS_IN_A_GROUP or not batch.schema.equals(waiting[0].schema, check_metadata=True)):
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
        waiting.append(batch)
        rows += batch.num_rows
    if rows:
        yield pa.Table.from_batches(waiting)


def _coded(schema: pa.Schema) -> list[str]:
    """The columns of which few values are different: texts (but for each row's own) and lists of them, and stored features."""
    own = [field.name for field in schema if field.name not in OWN and _repeats(field)]
    return own + [f"{field.name}.list.element" for field in schema if pa.types.is_list(field.type)]


def _repeats(field: pa.Field) -> bool:
    kind = field.type
    of_text = pa.types.is_string(kind) or pa.types.is_dictionary(kind)
    return of_text or pa.types.is_timestamp(kind) or (pa.types.is_floating(kind) and STORED in field.name[1:])


def sync_folder(folder: Path) -> None:
    """Makes the names of files in a folder last."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


@dataclass(frozen=True)
class Checked:
    """A chain that was checked: its files and rows, the SHA-256 of its last file (empty: there is none), the rows that are not
    sealed yet, and where it breaks."""

    chain: str
    files: int
    rows: int
    head: str
    unsealed: int
    breaks: tuple[str, ...]


def check(chain: Path, first: int = 1) -> Checked:
    """Reads every file of a chain from number `first` on and compares it with what the next says of it.

    A change of the last file shows only to who kept its hash (`head`) elsewhere.
    """
    breaks: list[str] = []
    rows, before, number = 0, None, first - 1
    files = [path for path in in_order(chain, SEALED) if Segment.of(path).number >= first]
    for path in files:
        found = Segment.of(path).number
        if found != number + 1:
            missing = f"file {number + 1}" if found == number + 2 else f"files {number + 1} to {found - 1}"
            breaks.append(f"{chain.name}: {missing} missing before {path.name}")
        number = found
        try:
            told = described(path)
            rows += pq.read_metadata(path).num_rows
            if before is not None or first == 1:
                breaks += [f"{path}: {why}" for why in _wrong(told["previous"], before)]
        except RecordError as error:
            breaks.append(str(error))
        before = {"file": path.name, "sha256": sha256(path)}
    unsealed = sum(batch.num_rows for log in in_order(chain, LOG) for batch, _ in read_frames(log))
    return Checked(chain.name, len(files), rows, before["sha256"] if before else "", unsealed, tuple(breaks))


def _wrong(said: Mapping[str, str] | None, before: Mapping[str, str] | None) -> list[str]:
    if said is None or before is None:
        return (
            [] if said == before else [f"it follows {said['file'] if said else 'no file'}, which is not what stands before it"]
        )
    if said["file"] != before["file"]:
        return [f"it follows {said['file']}, but {before['file']} stands before it"]
    if said["sha256"] != before["sha256"]:
        return [f"{before['file']} was changed: expected SHA-256 {said['sha256']}, got {before['sha256']}"]
    return []
