"""A recovery store that is spread over machines: what each says of its part, what follows for all, and that being done.

Before a job starts all machines have to agree on the epoch that it resumes at: Bytewax finds it by itself, but leaves what a
killed run wrote of later ones, and only the whole store tells which these are.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bytewax._bytewax import init_db_dir

from models.files import write_whole
from streams.positions import forget
from streams.shards import FIRST_EPOCH
from streams.sound import ELSEWHERE, sound
from streams.start import MADE, START, RecoveryError, Start, differences, made_for, put_in_place
from streams.store import SUFFIX, Store, progress_of

LINEAGE = "lineage"
"""In the folder of a store's part: what it was made with, at once with the others. Parts of other lineages are no store."""


@dataclass(frozen=True)
class Part:
    """What a machine has of a store. made: what for; None: it has none. executions, fronts: of the newest execution that it
    knows of. let_go: of each partition here the earliest epoch that it can be resumed at. start: where it begins without
    state."""

    made: Mapping[str, Any] | None = None
    lineage: str = ""
    count: int = 0
    here: Sequence[int] = ()
    executions: Sequence[Sequence[int]] = ()
    fronts: Sequence[Sequence[int]] = ()
    let_go: Sequence[int] = ()
    start: Mapping[str, Any] | None = None

    @property
    def used(self) -> bool:
        """Whether a job has run on it."""
        return bool(self.executions or self.fronts or self.let_go)


@dataclass(frozen=True)
class Plan:
    """What all machines do before they start. epoch: what is of it or later is forgotten. anew: who has no part of the store of
    that lineage makes one, of as many as there are machines, which begins at start."""

    epoch: int
    lineage: str
    machines: int
    anew: bool = False
    start: Mapping[str, Any] | None = None


def part(folder: Path) -> Part:
    """What is in a folder. Raises RecoveryError for what cannot be read."""
    start = asdict(Start.load(folder)) if (folder / START).exists() else None
    made = made_for(folder)
    if made is None:
        return Part(start=start)
    with Store(folder) as store:
        here = [each.index for each in store.parts]
        executions, fronts = store.executions(), store.fronts()
        newest = max((row[0] for row in [*executions, *fronts]), default=None)
        executions, fronts = ([row for row in rows if row[0] == newest] for rows in (executions, fronts))
        return Part(made, lineage_of(folder), store.count, here, executions, fronts, store.let_go(), start)


def agreed(parts: Sequence[Part], lineage: str) -> Plan:
    """The plan for all machines, in the order of their numbers; lineage: of a store that is made anew, as machine 0 says:
    when it has none, or only one that was never used.

    Raises RecoveryError, which names the machine, where the parts are no whole store.
    """
    first = parts[0]
    own = [each for each in parts if each.made is not None and each.lineage == first.lineage]
    progress = progress_of([row for each in own for row in each.executions], [row for each in own for row in each.fronts])
    epoch = progress.epoch
    if first.made is None and first.start is None and any(each.used for each in parts):
        raise RecoveryError("machine 0: expected its part of the recovery store, which others have, got none")
    if first.made is None or (first.lineage and not any(each.used for each in own)):
        known = first.made is not None and first.count == len(parts)
        return Plan(FIRST_EPOCH, first.lineage if known else lineage, len(parts), True, first.start)
    for number, each in enumerate(parts):
        if each not in own:
            what = "none" if each.made is None else "one of another making"
            raise RecoveryError(f"machine {number}: expected its part of the recovery store of machine 0, got {what}")
        if told := differences(each.made or {}, first.made):
            raise RecoveryError(f"machine {number}: recovery store: {'; '.join(told.values())}, as machine 0")
    got = sorted(number for each in parts for number in each.here)
    if got != list(range(first.count)):
        raise RecoveryError(
            f"expected partitions 0 to {first.count - 1} of the recovery store on {len(parts)} machines, got {got}"
        )
    if epoch is not None and (newer := [str(k) for k, each in enumerate(parts) if any(at > epoch for at in each.let_go)]):
        raise RecoveryError(f"machine {', '.join(newer)}: its recovery store is newer than the others, copies from before")
    return Plan(epoch or FIRST_EPOCH, first.lineage, len(parts))


def take(folder: Path, plan: Plan, machine: int, needs: Mapping[str, Any], flow: str) -> int:
    """Makes what the machine has into what the plan says; returns the epoch that the job starts with.

    A part of another store is kept as NAME.old. Raises RecoveryError for a part that the dataflow `flow` cannot go on with.
    """
    if plan.anew and (made_for(folder) is None or lineage_of(folder) != plan.lineage):
        make(folder, plan, machine, needs)
        return plan.epoch
    if lineage_of(folder) != plan.lineage:
        raise RecoveryError(f"recovery store {folder}: it was there when the machines met, and is another one now")
    with Store(folder) as store:
        files = store.files
    forget(files, plan.epoch)
    sound(folder, flow, epoch=plan.epoch)
    return plan.epoch


def lineage_of(folder: Path) -> str:
    """The lineage of a store's part; empty for one that was not made by `make`."""
    return (folder / LINEAGE).read_text() if (folder / LINEAGE).exists() else ""


def make(folder: Path, plan: Plan, machine: int, needs: Mapping[str, Any]) -> None:
    """The machine's part of a new store: its own partition of as many as there are machines."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    init_db_dir(new, plan.machines)
    for file in new.glob(f"*{SUFFIX}"):
        if file.name != f"part-{machine}{SUFFIX}":
            file.unlink()
    if plan.start is not None:
        write_whole(new / START, json.dumps(plan.start))
    (new / LINEAGE).write_text(plan.lineage)
    (new / ELSEWHERE).write_text(json.dumps([number for number in range(plan.machines) if number != machine]))
    write_whole(new / MADE, json.dumps(needs))
    put_in_place(new, folder)
