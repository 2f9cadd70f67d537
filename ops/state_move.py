"""A recovery store in other folders, or gone: `headrace state move` and `drop`."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ops.state_store import look
from streams.migrate import migrate, there
from streams.pipeline import Pipeline
from streams.positions import forget
from streams.settings import JobSettings
from streams.sound import ELSEWHERE
from streams.start import MADE, START, RecoveryError, store_of
from streams.store import SUFFIX, Part, Store
from streams.store_writer import settle


def move(
    pipeline: Pipeline, settings: JobSettings, called: str, sources: Sequence[Path], to: Sequence[Path], partitions: int = 0
) -> dict[str, list[int]]:
    """Brings the partitions that are in the homes `sources` (none: that of the settings) to the homes `to`, in turn.

    Each of several homes is for processes of their own, as the volumes of a StatefulSet's pods are: all of them are needed to
    run. partitions: how many are made of them first, which needs a store in one home. What a killed run wrote of epochs that
    never became durable is forgotten. What was there is kept as NAME.old. Returns the partitions by home. Raises RecoveryError,
    and then the store is where it was.
    """
    name = pipeline.name
    folders = [home / "recovery" / name for home in sources] or [store_of(pipeline, settings)]
    for folder in folders:
        there(folder, called)
        settle(folder)
    if partitions:
        if len(folders) > 1:
            raise RecoveryError("--partitions needs a store in one folder: move it there first")
        migrate(pipeline, settings.model_copy(update={"home": folders[0].parent.parent}), called, partitions)
    with Store(*folders) as store:
        if damage := store.damage():
            raise RecoveryError(f"recovery store {folders[0]}: {damage}")
        parts, count, epoch = sorted(store.parts, key=lambda part: part.index), store.count, store.progress.epoch
    if not parts:
        raise RecoveryError(f"recovery store {folders[0]}: its files ({SUFFIX[1:]}) are gone")
    if len(parts) < count:
        raise RecoveryError(f"expected all {count} partitions in {', '.join(map(str, folders))}, got {len(parts)}: see --from")
    if len(to) > count:
        raise RecoveryError(f"{len(to)} folders, and {count} partitions: --partitions {len(to)} makes one for each")
    targets = [home / "recovery" / name for home in to]
    for target in targets:
        if target.exists():
            raise RecoveryError(f"{target} is there already: headrace state drop {called} --home {target.parent.parent}")
    made: list[Path] = []
    try:
        for k, target in enumerate(targets):
            _copied(parts, k, len(targets), epoch, folders[0], target.with_name(f"{name}.moving"))
            target.with_name(f"{name}.moving").rename(target)
            made.append(target)
    except (OSError, RecoveryError) as error:
        for target in made:
            shutil.rmtree(target, ignore_errors=True)
        raise RecoveryError(f"recovery store of {name} is where it was: {error}") from error
    for folder in folders:
        set_aside(folder)
    return {str(home): [part.index for k, part in enumerate(parts) if k % len(to) == j] for j, home in enumerate(to)}


def _copied(parts: Sequence[Part], k: int, folders: int, epoch: int | None, source: Path, new: Path) -> None:
    """Copies every `folders`th part, without what a killed run wrote of epochs that never became durable."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for j, part in enumerate(parts):
        if j % folders == k:
            shutil.copyfile(part.path, new / f"part-{part.index}{SUFFIX}")
    for name in (MADE, START):
        if (source / name).exists():
            shutil.copyfile(source / name, new / name)
    others = [part.index for j, part in enumerate(parts) if j % folders != k]
    if others:
        (new / ELSEWHERE).write_text(json.dumps(others))
    if epoch is not None:
        forget(sorted(new.glob(f"*{SUFFIX}")), epoch)
    settle(new)
    with Store(new) as store:
        if damage := store.damage():
            raise RecoveryError(f"the copy {new}: {damage}")


def set_aside(folder: Path) -> Path:
    """Renames a store to NAME.old, in the place of the one before; returns where it is."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    return folder.rename(old)


def lost(pipeline: Pipeline, settings: JobSettings, called: str) -> str:
    """What is lost with a store, in words. Raises RecoveryError where there is none."""
    folder = store_of(pipeline, settings)
    there(folder, called)
    again = f"its positions in {pipeline.events.topic} stay in the consumer group {pipeline.group}, if it has committed any: "
    again += f"headrace run {called} --rebuild makes the state anew from there"
    try:
        found = look(pipeline, settings, called)
    except RecoveryError as error:
        return f"{error}; {again}"
    at = ", ".join(f"{number}@{position['decided']}" for number, position in found["positions"].items())
    entities = f"the state of {found['entities']:,} entities"
    return f"{folder}: {entities}, positions {at or 'none'}, {found['bytes']['files']:,} bytes; {again}"


def drop(pipeline: Pipeline, settings: JobSettings) -> Path:
    """Sets a store aside as NAME.old; returns where it is. Raises RecoveryError if a job is running on it."""
    folder = store_of(pipeline, settings)
    settle(folder)
    return set_aside(folder)
