"""What a killed run wrote of an epoch that never became durable does not come back after the next crash."""

import sqlite3
from contextlib import closing
from pathlib import Path

from bytewax._bytewax import init_db_dir

from streams.positions import forget_unfinished


def test_snapshots_of_unfinished_epochs_are_forgotten_and_no_others(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    assert forget_unfinished(tmp_path) == 0
    with closing(sqlite3.connect(next(tmp_path.glob("*.sqlite3")))) as store, store:
        store.execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, 2, 1)")
        snapshot = "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES ('f.step', ?, ?, x'80')"
        store.executemany(snapshot, [("a", 1), ("a", 2), ("b", 3), ("c", 4)])
        front = "INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, ?, ?)"
        store.executemany(front, [(0, 4), (1, 3)])
    assert forget_unfinished(tmp_path) == 2
    with closing(sqlite3.connect(next(tmp_path.glob("*.sqlite3")))) as store:
        assert store.execute("SELECT state_key, snap_epoch FROM snaps").fetchall() == [("a", 1), ("a", 2)]
