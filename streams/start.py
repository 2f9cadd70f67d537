"""Where a job that has no state begins, and what a recovery store was made for.

A recovery store is a folder: Bytewax's own files, `made`, which says what the state in it is of, and `start.json`, a `Start`,
where the job did not simply begin at the beginning of its topic.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from streams.decode import Decoded
from streams.pipeline import Pipeline
from streams.secret import keyed
from streams.settings import JobSettings
from streams.shards import FIRST_EPOCH, VERSION
from streams.sound import OtherPartitionsError, sound
from streams.store import RecoveryError as RecoveryError

MADE, START = "made", "start.json"


@dataclass(frozen=True)
class Start:
    """Where a job without state begins, by partition; 0 where none is said.

    read: the first offset that is read; decide: the first that is decided on, what is before it only feeds the state.
    begins: the time (µs) from which on the state then holds everything; None: from the first event.
    """

    read: Mapping[int, int] = field(default_factory=dict)
    decide: Mapping[int, int] = field(default_factory=dict)
    begins: int | None = None

    @property
    def again(self) -> int:
        """How many messages are read again."""
        return sum(max(0, offset - self.read.get(partition, 0)) for partition, offset in self.decide.items())

    def save(self, folder: Path) -> None:
        """Writes it to a folder."""
        (folder / START).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "Start":
        """What `save` wrote, or the beginning."""
        if not (folder / START).exists():
            return cls()
        try:
            said = json.loads((folder / START).read_text())
            read, decide = ({int(partition): offset for partition, offset in said[name].items()} for name in ("read", "decide"))
            return cls(read, decide, said["begins"])
        except (ValueError, KeyError, AttributeError) as error:
            raise RecoveryError(f"recovery store {folder}: {START} is damaged: {type(error).__name__} {error}") from None


class Rebuilding:
    """Tells how far a rebuild is: a number at each poll, words every few seconds."""

    def __init__(
        self, pipeline: str, start: Start, gauge: Callable[[float], None], say: Callable[[str], None], every: float = 5.0
    ) -> None:
        self._pipeline, self._gauge, self._say, self._every = pipeline, gauge, say, every
        self._all = {partition: max(0, offset - start.read.get(partition, 0)) for partition, offset in start.decide.items()}
        self._left: dict[int, int] = {}
        self._next = 0.0

    def left(self, partition: int, left: int) -> None:
        """So many messages of a partition are still to be read again."""
        self._left[partition] = left
        total, known = sum(self._left.values()), sum(self._all.get(partition, 0) for partition in self._left)
        self._gauge(total)
        now = time.monotonic()
        if total == 0 or now >= self._next:
            self._next = now + self._every
            done = (
                "deciding goes on" if total == 0 else f"{total:,} messages to read again, {1 - total / max(known, 1):.0%} done"
            )
            self._say(f"{self._pipeline}: rebuilding state: {done}")


def only_from(decoded: Decoded, reads: npt.NDArray[np.bool_], offset: int) -> tuple[Decoded, npt.NDArray[np.bool_]]:
    """The same without dead letters of messages before `offset`, and which rows to decide on, bool [n], less those before."""
    fresh = decoded.rows.column("_offset").to_numpy() >= offset
    dead = decoded.dead.filter(pc.greater_equal(decoded.dead.column("_offset"), offset))
    return replace(decoded, dead=dead), reads & fresh


def store_of(pipeline: Pipeline, settings: JobSettings) -> Path:
    """The folder of a pipeline's recovery store, whether it is there or not."""
    return settings.home / "recovery" / pipeline.name


def needs(pipeline: Pipeline, settings: JobSettings) -> dict[str, Any]:
    """What a pipeline's state depends on, as plain data."""
    events = pipeline.events
    secrets = {"secret key": keyed(events.schema, settings, events.topic).fingerprint} if events.schema.secrets else {}
    return secrets | {
        "state version": VERSION,
        "topic": events.topic,
        "time": events.time,
        "order": settings.order or events.order,
        "shards": pipeline.shards,
        "features": {group.entity: [repr(feature) for feature in group.features] for group in pipeline.groups},
    }


def made_for(folder: Path) -> dict[str, Any] | None:
    """What the store in a folder was made for; None if there is none, empty if it does not say."""
    try:
        return dict(json.loads((folder / MADE).read_text() or "{}"))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {}


def put_in_place(new: Path, folder: Path) -> None:
    """A new store takes the place of what is in a folder, which is kept as NAME.old if it ever was of use."""
    unused = folder.with_name(f"{folder.name}.unused")
    if folder.exists():
        aside = unused if made_for(folder) is None else folder.with_name(f"{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    new.rename(folder)
    shutil.rmtree(unused, ignore_errors=True)


def differences(got: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, str]:
    """In what a store that was made for `got` differs from what is expected, in words, by what it is; see `needs`."""
    told = {
        name: f"expected {name} {expected[name]}, got {got.get(name, 'none')}"
        for name in expected
        if name != "features" and got.get(name) != expected[name]
    }
    now, before = expected["features"], got.get("features", {})
    words = []
    for entity in dict.fromkeys([*now, *before]):
        new = [each for each in now.get(entity, ()) if each not in before.get(entity, ())]
        gone = [each for each in before.get(entity, ()) if each not in now.get(entity, ())]
        if new:
            words.append(f"it has nothing for {', '.join(new)}")
        if gone:
            words.append(f"it has state of {', '.join(gone)}, which are not asked for")
    if list(now.items()) != list(before.items()):
        told["features"] = "; ".join(words) or "the features come in another order"
    if got.keys() - expected.keys():
        told["more"] = f"expected no {', '.join(sorted(got.keys() - expected.keys()))}"
    return told


def check(pipeline: Pipeline, settings: JobSettings, called: str = "", whole: bool = True) -> int:
    """The epoch at which a job goes on from its store, or begins.

    Raises RecoveryError, which says all differences, if there is a store and the pipeline as it is cannot go on with it.
    called: what the pipeline is called on the command line. whole: whether to read all of its files for damage.
    """
    folder, name = store_of(pipeline, settings), called or pipeline.name
    got = made_for(folder)
    if got is None:
        return FIRST_EPOCH
    anew = f"headrace run {name} --rebuild makes the state anew from the topic and goes on where it was"
    told = differences(got, needs(pipeline, settings))
    if told:
        moves = f"headrace state migrate {name} moves the state to as many, or " if told.keys() == {"shards"} else ""
        raise RecoveryError(f"recovery store {folder}: {'; '.join(told.values())}: {moves}{anew}")
    try:
        return sound(folder, pipeline.name, settings.recovery_partitions, whole)
    except OtherPartitionsError as error:
        raise RecoveryError(f"{error}: headrace state migrate {name} moves the state to as many, or {anew}") from None
    except RecoveryError as error:
        raise RecoveryError(f"{error}: {anew}") from None
