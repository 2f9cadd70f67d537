"""A recovery store written anew without reading the topic: with another number of shards or partitions, or in other folders.

What it was stays beside it as NAME.old. Nothing may run on it meanwhile.
"""

import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.streaming import Group
from streams.holdings import whole
from streams.pipeline import Pipeline
from streams.routing import page_name
from streams.settings import JobSettings
from streams.shards import PAGES, Shards
from streams.sound import sound
from streams.start import MADE, START, RecoveryError, differences, made_for, needs, store_of
from streams.store import SUFFIX, Snapshot, Store
from streams.store_writer import settle, write


@dataclass(frozen=True)
class Migrated:
    """What a store was and is: shards, partitions, and bytes of its files; the number of snapshots now."""

    shards: tuple[int, int]
    partitions: tuple[int, int]
    nbytes: tuple[int, int]
    snapshots: int


def migrate(pipeline: Pipeline, settings: JobSettings, called: str, partitions: int = 0) -> Migrated:
    """Writes the store anew with the pipeline's number of shards and so many partitions; 0: as the settings say, or as it has.

    The job goes on at the same epoch and positions. All of the state is in memory meanwhile where the number of shards changes.
    Raises RecoveryError, which names the command that goes on, for a change that needs the topic.
    """
    folder, expected = store_of(pipeline, settings), needs(pipeline, settings)
    made = there(folder, called)
    anew = f"headrace run {called} --rebuild makes the state anew from the topic"
    told = differences(made, expected)
    before, after = int(made.get("shards", 0)), pipeline.shards
    told.pop("shards", None)
    if told or not before:
        raise RecoveryError(f"recovery store {folder}: {'; '.join(told.values())}: this needs the topic: {anew}")
    settle(folder)
    try:
        sound(folder, pipeline.name)
    except RecoveryError as error:
        raise RecoveryError(f"{error}: {anew}") from None
    with Store(folder) as store:
        if store.missing:
            raise RecoveryError(
                f"recovery store {folder}: partitions {store.missing} are in other folders: bring them together"
            )
        count = partitions or settings.recovery_partitions or store.count
        new = fresh(folder)
        snapshots = _all(store) if before == after else _of_other_shards(store, pipeline, before)
        written = write(new, count, store.progress, snapshots)
        was = store.count
    if (folder / START).exists():
        shutil.copy(folder / START, new / START)
    (new / MADE).write_text(json.dumps(expected))
    sizes = _bytes(folder), _bytes(new)
    swap(new, folder)
    return Migrated((before, after), (was, count), sizes, written)


def there(folder: Path, called: str) -> dict[str, Any]:
    """What a store was made for. Raises RecoveryError where there is none."""
    made = made_for(folder)
    if made is None:
        raise RecoveryError(f"there is no recovery store {folder}: headrace run {called} makes one")
    return made


def fresh(folder: Path) -> Path:
    """An empty folder beside a store, for what takes its place."""
    new = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    return new


def swap(new: Path, folder: Path) -> None:
    """Puts a folder in the place of a store, kept as NAME.old. Killed meanwhile, the next start ends it (ops/start.py)."""
    old, next_one = folder.with_name(f"{folder.name}.old"), folder.with_name(f"{folder.name}.new")
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(next_one, ignore_errors=True)
    new.rename(next_one)
    folder.rename(old)
    next_one.rename(folder)


def _all(store: Store) -> Iterator[Snapshot]:
    for step in store.steps():
        yield from store.snapshots(step)


def _of_other_shards(store: Store, pipeline: Pipeline, shards: int) -> Iterator[Snapshot]:
    """All snapshots, those of the state by other shards."""
    step = f"{pipeline.name}.features"
    for other in store.steps():
        if other != step:
            yield from store.snapshots(other)
    held = whole(store, pipeline.name, pipeline.groups, shards)
    epoch, now = (store.progress.epoch or 1) - 1, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    for page in cut_again(held, pipeline.groups, pipeline.shards):
        yield Snapshot(step, page_name(page["shard"], page["page"]), epoch, pickle.dumps(page), now)


def cut_again(held: Shards, groups: Sequence[Group], shards: int) -> Iterator[dict[str, Any]]:
    """The snapshots of all pages of so many shards, from which what is held comes back. Nothing is fed to `held` after that."""
    made = Shards(groups, shards, None)
    made.states, made.begins = held.states, held.begins
    for shard in range(shards):
        for state in made.states:
            state.changed(shard, shards)  # that is all, and on the pages that follow
    for page in range(PAGES):
        made.held = held.held if page == PAGES - 1 else None  # those of the last one count
        for shard in range(shards):
            yield made.snapshot(shard, page)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(f"*{SUFFIX}"))
