"""What a killed run wrote of an epoch that never became durable does not come back after the next crash."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from bytewax._bytewax import init_db_dir
from payments import payments, settings

from streams.positions import forget_unfinished
from streams.run import recovery_folder
from streams.start import store_of
from streams.store import RecoveryError, Store
from streams.store_writer import taken_up


@pytest.mark.parametrize("partitions", [1, 3])
def test_snapshots_of_unfinished_epochs_are_forgotten_and_no_others(tmp_path: Path, partitions: int) -> None:
    """Whatever the partitions that say how far the workers were, and that hold the snapshots."""
    init_db_dir(tmp_path, partitions)
    files = [tmp_path / f"part-{number}.sqlite3" for number in range(partitions)]
    assert forget_unfinished(tmp_path) == 0
    snapshot = "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES ('f.step', ?, ?, x'80')"
    front = "INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, ?, ?)"
    with closing(sqlite3.connect(files[0])) as store, store:
        store.executemany(snapshot, [("a", 1), ("a", 2), ("b", 3)])
    with closing(sqlite3.connect(files[1 % partitions])) as store, store:
        store.execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, 2, 1)")
        store.execute(front, (0, 4))
    with closing(sqlite3.connect(files[2 % partitions])) as store, store:
        store.execute(snapshot, ("c", 4))
        store.execute(front, (1, 3))
    assert forget_unfinished(tmp_path) == 2
    with closing(sqlite3.connect(files[0])) as store:
        assert store.execute("SELECT state_key, snap_epoch FROM snaps").fetchall() == [("a", 1), ("a", 2)]
    files[-1].unlink()
    assert forget_unfinished(tmp_path) == 0


def test_a_store_that_was_being_made_is_made_anew_wherever_that_was_stopped(tmp_path: Path) -> None:
    """Its files are whole when they are there, whatever is left of those that were not."""
    job = settings(tmp_path, recovery=True, recovery_partitions=3)
    folder = store_of(payments(), job)
    for made in range(4):
        making = folder / "making"
        making.mkdir(parents=True)
        init_db_dir(making, 3)
        for number in range(made):
            (making / f"part-{number}.sqlite3").rename(folder / f"part-{number}.sqlite3")
        if made < 3:
            (making / f"part-{made}.sqlite3").write_bytes(b"SQLite format 3")
        assert recovery_folder(payments(), job) == folder
        assert sorted(path.name for path in folder.iterdir()) == ["made", *(f"part-{number}.sqlite3" for number in range(3))]
        with Store(folder) as store:
            assert (store.count, store.missing, store.damage()) == (3, [], "")
        shutil.rmtree(folder)


def test_a_new_store_has_a_partition_for_each_worker_and_keeps_them(tmp_path: Path) -> None:
    job = settings(tmp_path, recovery=True)
    for workers in (3, 2):
        with Store(recovery_folder(payments(), job, workers=workers)) as store:
            assert store.count == 3


def test_a_store_of_several_files_is_read_as_of_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch that ends while they are opened is waited for; where they end all the time the store is not read."""
    init_db_dir(tmp_path, 2)
    frontier = iter(range(1, 1000))
    right = Store._rows

    def epoch_ends() -> None:
        with closing(sqlite3.connect(tmp_path / "part-1.sqlite3")) as file, file:
            file.execute(
                "INSERT OR REPLACE INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, 1, ?)", (next(frontier),)
            )

    def rows(store: Store, file: Path, connection: sqlite3.Connection, query: str, values: tuple[object, ...]) -> list[object]:
        if query == "BEGIN" and file.name == "part-0.sqlite3" and next(times, None) is not None:
            epoch_ends()
        return right(store, file, connection, query, values)

    with closing(sqlite3.connect(tmp_path / "part-0.sqlite3")) as file, file:
        file.execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, 1, 1)")
    epoch_ends()
    monkeypatch.setattr(Store, "_rows", rows)
    times = iter(range(3))
    with Store(tmp_path) as store:
        assert store.fronts() == [(0, 1, 4)]
    times = iter(range(1000))
    with pytest.raises(RecoveryError, match="epochs end faster than its files can be opened"):
        Store(tmp_path)


def test_a_store_that_is_taken_up_has_its_log_so_that_workers_do_not_fight_for_it(tmp_path: Path) -> None:
    """Where it had none, the first to open the file would have to begin it, alone: a second that reads is in the way."""
    init_db_dir(tmp_path, 1)
    file = tmp_path / "part-0.sqlite3"
    for before in ("DELETE", "WAL"):
        with closing(sqlite3.connect(file)) as store:
            store.execute(f"PRAGMA journal_mode = {before}").fetchall()
        taken_up(tmp_path)
        with closing(sqlite3.connect(file)) as reader, closing(sqlite3.connect(file, timeout=0)) as store:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM snaps").fetchone()
            assert store.execute("PRAGMA journal_mode = WAL").fetchall() == [("wal",)]
