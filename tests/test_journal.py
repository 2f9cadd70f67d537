"""The files of a record: nothing handed over is lost, a slow disk is waited for, and a chain says where it breaks."""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.journal import FRAME_ROWS, Journal, adopt
from sinks.segments import KEY, Checked, Frames, RecordError, check, described, in_order, read_frames, seal

DAY = 1_700_000_000.0 // 86_400 * 86_400
SCHEMA = pa.schema([("n", pa.int64()), ("words", pa.string())], {KEY: json.dumps({"pipeline": "p"}).encode()})


def make(items: Sequence[Sequence[int]]) -> pa.RecordBatch:
    numbers = [number for item in items for number in item]
    return pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64()), pa.array(["w"] * len(numbers))], schema=SCHEMA)


def same(table: pa.Table) -> pa.Table:
    return table


def opened(chain: Path, size: int = 10**9, most: int = 100_000, sync: Callable[[int], None] = os.fdatasync) -> Journal[range]:
    return Journal(chain, make, same, bytes_a_file=size, most_rows=most, clock=lambda: DAY, sync=sync)


def rows(chain: Path) -> list[int]:
    sealed = [number for path in in_order(chain, ".parquet") for number in pq.read_table(path)["n"].to_pylist()]
    return sealed + [n for log in in_order(chain, ".log") for batch, _ in read_frames(log) for n in batch["n"].to_pylist()]


def filled(chain: Path, files: int = 4) -> list[Path]:
    """A chain of so many files, of a hundred rows each."""
    journal = opened(chain, size=1)
    for k in range(files):
        journal.add(range(100 * k, 100 * (k + 1)), 100)
        journal.flush()
    journal.close()
    return in_order(chain, ".parquet")


@given(st.lists(st.tuples(st.integers(0, 3_000), st.booleans()), max_size=12), st.sampled_from([1, 20_000, 10**9]))
def test_everything_comes_out_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[int, bool]], size: int
) -> None:
    chain = tmp_path_factory.mktemp("chain") / "worker-0"
    journal, n = opened(chain, size=size), 0
    for count, flushed in items:
        journal.add(range(n, n + count), count)
        n += count
        if flushed:
            journal.flush()
            assert rows_on_disk(chain, n) == n
    journal.close()
    assert rows(chain) == list(range(n))
    assert in_order(chain, ".log") == []
    assert check(chain).breaks == ()


def rows_on_disk(chain: Path, expected: int) -> int:
    """How many rows there are, while logs become Parquet files on another thread."""
    deadline = time.monotonic() + 20
    while True:
        try:
            found = len(rows(chain))
        except FileNotFoundError:
            continue
        if found == expected or time.monotonic() > deadline:
            return found


def test_what_was_flushed_survives_a_kill_at_any_byte(tmp_path: Path) -> None:
    """A log is cut at every length: all frames that are whole are read, and the rest is left out."""
    log = tmp_path / "_00000001-2023-11-14.log"
    ends = [0]
    with log.open("wb") as file:
        for k in range(3):
            ends.append(ends[-1] + Frames().write(file, make([range(10 * k, 10 * k + 10)])))
    whole = log.read_bytes()
    for length in [*range(0, len(whole), 7), *ends, *(end - 1 for end in ends[1:])]:
        log.write_bytes(whole[:length])
        found = sum(batch.num_rows for batch, _ in read_frames(log))
        assert found == 10 * (sum(length >= end for end in ends) - 1)
    log.write_bytes(whole[:-100] + bytes(100))
    assert sum(batch.num_rows for batch, _ in read_frames(log)) == 20
    log.write_bytes(whole + bytes(4096))
    assert sum(batch.num_rows for batch, _ in read_frames(log)) == 30


def test_a_killed_jobs_log_is_sealed_by_the_next_one(tmp_path: Path) -> None:
    chain = tmp_path / "worker-0"
    files = filled(chain, 2)
    with (chain / "_00000003-2023-11-14.log").open("wb") as file:
        Frames().write(file, make([range(200, 300)]))
        file.write(b"half a frame")
    (chain / "_00000003-2023-11-14.half").write_bytes(b"half a file")
    journal = opened(chain)
    journal.add(range(300, 310), 10)
    journal.close()
    assert rows(chain) == list(range(310))
    assert [path.name[:8] for path in in_order(chain, ".parquet")] == ["00000001", "00000002", "00000003", "00000004"]
    assert check(chain).breaks == ()
    assert not list(chain.glob("*.half"))
    assert files[0].exists()


@pytest.mark.parametrize("left", [b"", b"half of a frame"])
def test_killed_just_when_a_log_was_begun_no_file_of_the_chain_is_missing(tmp_path: Path, left: bytes) -> None:
    chain = tmp_path / "worker-0"
    last = filled(chain, 2)[-1]
    (chain / f"_00000003{last.stem.removeprefix('00000002')}.log").write_bytes(left)
    journal = opened(chain)
    journal.add(range(200, 300), 100)
    journal.close()
    assert rows(chain) == [*range(300)]
    assert check(chain).breaks == ()


def test_killed_between_sealing_and_removing_the_log_nothing_is_there_twice(tmp_path: Path) -> None:
    log = tmp_path / "_00000001-2023-11-14.log"
    with log.open("wb") as file:
        Frames().write(file, make([range(5)]))
    kept = log.read_bytes()
    sealed = seal(log, same)
    log.write_bytes(kept)
    assert seal(log, same) == sealed
    assert rows(tmp_path) == list(range(5))


def test_each_day_begins_a_file(tmp_path: Path) -> None:
    now = [DAY + 86_399.0]
    journal = Journal(tmp_path / "worker-0", make, same, bytes_a_file=10**9, clock=lambda: now[0])
    for k in range(4):
        journal.add(range(10 * k, 10 * (k + 1)), 10)
        journal.flush()
        now[0] += 0.0 if k == 0 else 1.0 if k == 1 else 86_400.0
    journal.close()
    files = in_order(tmp_path / "worker-0", ".parquet")
    assert [path.stem[9:] for path in files] == ["2023-11-14", "2023-11-15", "2023-11-16"]
    assert [pq.read_metadata(path).num_rows for path in files] == [20, 10, 10]
    assert [described(path)["day"] for path in files] == ["2023-11-14", "2023-11-15", "2023-11-16"]


def test_a_file_has_items_of_one_kind(tmp_path: Path) -> None:
    """However they come, in one turn or in several."""
    chain = tmp_path / "worker-0"
    journal = Journal(chain, make, same, bytes_a_file=10**9, kind=lambda item: item.start // 100, clock=lambda: DAY)
    for start in (0, 10, 100, 110, 20):
        journal.add(range(start, start + 10), 10)
        if start == 0:
            journal.flush()
    journal.close()
    files = in_order(chain, ".parquet")
    assert [pq.read_table(path)["n"].to_pylist() for path in files] == [
        list(range(20)), list(range(100, 120)), list(range(20, 30)),
    ]  # fmt: skip
    assert not check(chain).breaks


def test_a_whole_chain_is_whole(tmp_path: Path) -> None:
    files = filled(tmp_path / "worker-0")
    found = check(tmp_path / "worker-0")
    assert (found.files, found.rows, found.unsealed, found.breaks) == (4, 400, 0, ())
    assert described(files[0])["previous"] is None
    assert described(files[2])["previous"]["file"] == files[1].name
    files[0].unlink()
    assert check(tmp_path / "worker-0").breaks != ()
    assert check(tmp_path / "worker-0", first=2) == Checked("worker-0", 3, 300, found.head, 0, ())
    assert check(tmp_path / "worker-0", first=1).files == 3


def flip(files: Sequence[Path]) -> str:
    data = bytearray(files[1].read_bytes())
    data[len(data) // 3] ^= 1
    files[1].write_bytes(data)
    return f"{files[1].name} was changed"


def remove(files: Sequence[Path]) -> str:
    files[1].unlink()
    return f"file 2 missing before {files[2].name}"


def begin_later(files: Sequence[Path]) -> str:
    files[0].unlink()
    files[1].unlink()
    return "files 1 to 2 missing"


def exchange(files: Sequence[Path]) -> str:
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    return f"{files[0]}: it follows {files[0].name}"


def write_anew(files: Sequence[Path]) -> str:
    table = pq.read_table(files[1])
    pq.write_table(table.slice(0, 99), files[1])
    return f"{files[1].name} was changed"


def ruin(files: Sequence[Path]) -> str:
    files[1].write_bytes(b"nothing")
    return f"{files[1]}: cannot be read as Parquet"


@pytest.mark.parametrize("harm", [flip, remove, begin_later, exchange, write_anew, ruin])
def test_a_broken_chain_says_where(tmp_path: Path, harm: Callable[[Sequence[Path]], str]) -> None:
    said = harm(filled(tmp_path / "worker-0"))
    found = check(tmp_path / "worker-0")
    assert any(said in line for line in found.breaks), found.breaks


def test_the_last_file_shows_in_the_head(tmp_path: Path) -> None:
    files = filled(tmp_path / "worker-0")
    before = check(tmp_path / "worker-0")
    pq.write_table(pq.read_table(files[-1]).slice(1), files[-1])
    after = check(tmp_path / "worker-0")
    assert after == Checked(before.chain, 4, 399, after.head, 0, ())
    assert after.head != before.head


def test_a_slow_disk_is_waited_for_and_memory_is_bounded(tmp_path: Path) -> None:
    """While the disk does nothing, no more is taken over than may wait, and no flush returns; then all is there."""
    go, waiting = threading.Event(), []
    journal = opened(tmp_path / "worker-0", most=5_000, sync=lambda file: (go.wait(20), None)[1])
    taken = []

    def feed() -> None:
        for k in range(20):
            journal.add(range(1000 * k, 1000 * (k + 1)), 1000)
            taken.append(k)
        journal.flush()
        waiting.append(True)

    thread = threading.Thread(target=feed)
    thread.start()
    time.sleep(0.3)
    assert 5 <= len(taken) <= 10
    assert not waiting
    go.set()
    thread.join(20)
    assert waiting
    journal.close()
    assert rows(tmp_path / "worker-0") == list(range(20_000))


@pytest.mark.parametrize("call", ["add", "flush"])
def test_a_disk_that_fails_stops_the_job(tmp_path: Path, call: str) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    journal = opened(tmp_path / "worker-0", most=FRAME_ROWS, sync=full)
    journal.add(range(10), 10)
    with pytest.raises(RecordError, match=r"worker-0: cannot be written \(OSError: \[Errno 28\] No space left on device\)"):
        journal.flush()
    with pytest.raises(RecordError, match="No space left"):
        journal.add(range(10), 10) if call == "add" else journal.flush()
    journal.close()


def test_a_sealing_that_fails_stops_the_job(tmp_path: Path) -> None:
    def broken(table: pa.Table) -> pa.Table:
        raise ValueError("no such shape")

    journal = Journal(tmp_path / "worker-0", make, broken, bytes_a_file=1, clock=lambda: DAY)

    def go_on() -> None:
        for _ in range(200):
            journal.add(range(100), 100)
            journal.flush()
            time.sleep(0.01)

    with pytest.raises(RecordError, match="no such shape"):
        go_on()
    journal.close()


def test_two_jobs_do_not_write_one_chain(tmp_path: Path) -> None:
    journal = opened(tmp_path / "worker-0")
    with pytest.raises(RecordError, match="another process is writing to it"):
        opened(tmp_path / "worker-0")
    journal.close()
    opened(tmp_path / "worker-0").close()


def test_what_former_workers_left_is_sealed_by_one_of_those_that_are(tmp_path: Path) -> None:
    for worker in range(5):
        chain = tmp_path / f"worker-{worker}"
        chain.mkdir()
        with (chain / "_00000001-2023-11-14.log").open("wb") as file:
            Frames().write(file, make([range(worker)]))
    adopt(tmp_path, 0, range(2), same)
    assert [len(in_order(tmp_path / f"worker-{k}", ".log")) for k in range(5)] == [1, 1, 0, 1, 0]
    adopt(tmp_path, 1, range(2), same)
    assert [len(in_order(tmp_path / f"worker-{k}", ".log")) for k in range(5)] == [1, 1, 0, 0, 0]
    assert np.array_equal(rows(tmp_path / "worker-4"), range(4))
