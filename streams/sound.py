"""Whether a recovery store is whole, one's own, and of versions that can be read: found before a job starts on it."""

import json
from dataclasses import replace
from pathlib import Path

from features.state import STATE_VERSION
from sinks.staged import VERSION as STAGED_VERSION
from streams import drift
from streams.shards import FIRST_EPOCH, VERSION
from streams.store import SUFFIX, RecoveryError, Snapshot, Store

ELSEWHERE = "elsewhere.json"
"""In the folder of a store whose partitions are in several: which of them are not here."""
VERSIONS = {
    "features": VERSION,
    "gather": VERSION,
    "sink": STAGED_VERSION,
    "reports": STAGED_VERSION,
    "drift": drift.VERSION,
    "judge": drift.JUDGE_VERSION,
}
"""Of the steps' snapshots."""


class OtherPartitionsError(RecoveryError):
    """The store has another number of partitions than the settings say."""


def elsewhere(folder: Path) -> list[int]:
    """The partitions of a store that are in other folders. Raises RecoveryError."""
    try:
        return [int(number) for number in json.loads((folder / ELSEWHERE).read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise RecoveryError(f"recovery store {folder}: {ELSEWHERE} is damaged") from None


def sound(folder: Path, flow: str, partitions: int = 0, whole: bool = True, epoch: int | None = None) -> int:
    """The epoch at which `flow` goes on from a store.

    Raises RecoveryError for one that it cannot go on with, whatever it was made for; see streams/start.py for that.

    partitions: how many are expected; 0: as many as there are. whole: whether to read all that is in it, not one snapshot of
    each step. epoch: that it is resumed at, of a store whose other partitions are elsewhere.
    """
    with Store(folder) as store:
        if epoch is not None:
            store.progress = replace(store.progress, epoch=epoch)
        missing = sorted(set(store.missing) - set(elsewhere(folder)))
        if not store.parts:
            raise RecoveryError(f"recovery store {folder}: its files ({SUFFIX[1:]}) are gone")
        if missing:
            names = ", ".join(f"part-{number}{SUFFIX}" for number in missing)
            raise RecoveryError(f"recovery store {folder}: {names} of {store.count} partitions is missing")
        if partitions and partitions != store.count:
            told = f"expected {partitions} recovery partitions (setting recovery_partitions), got {store.count}"
            raise OtherPartitionsError(f"recovery store {folder}: {told}")
        if not store.missing and (newer := store.ahead()):
            names = ", ".join(f"partition {number}" for number in newer)
            raise RecoveryError(f"recovery store {folder}: {names} is newer than the others, which are copies from before")
        for step in store.steps():
            if (owner := step.rpartition(".")[0]) != flow:
                raise RecoveryError(f"recovery store {folder}: expected the state of pipeline {flow}, got that of {owner}")
        if whole and (damage := store.damage()):
            raise RecoveryError(f"recovery store {folder}: {damage}")
        for step in store.steps():
            for snapshot in store.snapshots(step):
                if _readable(folder, step.rpartition(".")[2], snapshot) and not whole:
                    break
        return store.progress.epoch or FIRST_EPOCH


def _readable(folder: Path, step: str, snapshot: Snapshot) -> bool:
    """Whether a snapshot says its version; raises RecoveryError for a wrong one, or one that is damaged."""
    try:
        state = snapshot.load()
    except RecoveryError as error:
        raise RecoveryError(f"recovery store {folder}: {error}") from None
    if state is None or step not in VERSIONS:
        return False
    got = state.get("version", "none") if isinstance(state, dict) else "none"
    if got != VERSIONS[step]:
        raise RecoveryError(f"recovery store {folder}: {step}: expected version {VERSIONS[step]}, got {got}")
    if step != "features" or state["shard"] is None:
        return step != "features"
    for group in state["groups"]:
        if group["version"] != STATE_VERSION:
            told = f"expected state of version {STATE_VERSION}, got {group['version']}"
            raise RecoveryError(f"recovery store {folder}: {told}")
    return True
