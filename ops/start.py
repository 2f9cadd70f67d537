"""Before a job starts: is its state there and its own, and if not, where does it begin?"""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from features.spec import seconds
from ops.logs import say as say_aloud
from streams.log import KafkaLog
from streams.pipeline import Pipeline
from streams.positions import committed, kept, stages
from streams.rebuild import SECOND, Timeline, resume
from streams.settings import JobSettings
from streams.sound import elsewhere
from streams.source import topic_partitions
from streams.start import START, RecoveryError, Start, check, made_for, put_in_place, store_of
from streams.store_writer import taken_up

CHOICES = "--from earliest, --from latest or --from TIME (an event's, as in 2026-01-31T08:00)"


def prepare(
    pipeline: Pipeline,
    settings: JobSettings,
    *,
    called: str,
    rebuild: bool = False,
    begin: str | None = None,
    slack: str = "1h",
    say: Callable[[str], None] = lambda words: say_aloud(words, out=True),
) -> None:
    """Sees to it that the job has a recovery store that it can go on with, or a place to begin at; says which.

    rebuild: the state is made anew from the topic, and deciding goes on where it was: as the recovery store says, or the
    consumer group, or `begin`: earliest, latest or a time of events. slack: how far events may come out of order. Raises
    RecoveryError, whose message names the command that goes on.
    """
    store, name = store_of(pipeline, settings), pipeline.name
    if not settings.recovery:
        if rebuild or begin:
            raise RecoveryError("recovery is off (HEADRACE_RECOVERY): a job that keeps nothing always begins at the beginning")
        return
    unfinished(store)
    if made_for(store) is not None:
        taken_up(store)  # or another runs on it
    exists = made_for(store) is not None or (begin is None and (store / START).exists())
    if settings.machine:
        return  # machine 0 says for all where a job without state begins (streams/machines.py)
    if settings.machines == 1 and not rebuild and exists and elsewhere(store):
        raise RecoveryError(
            f"{store} is a part of {name}'s state, of several machines: headrace state move {called} --from HOME --from ... "
            f"brings the parts together, and headrace run {called} --rebuild makes the state anew"
        )
    if exists and not rebuild:
        if begin:
            raise RecoveryError(f"{name} goes on where it was, as {store} says: --from needs --rebuild")
        check(pipeline, settings, called)
        return
    topic = pipeline.events
    partitions = topic_partitions(topic.topic, settings.brokers, settings.client)
    found: dict[int, int] = {}
    where = ""
    if begin is None:
        found, where = positions(pipeline, settings, store, partitions, rebuild)
    if found and not rebuild:
        raise RecoveryError(
            f"{name} has run before (group {pipeline.group}), but there is no recovery store {store}: headrace run {called} "
            f"--rebuild makes the state anew and goes on where it was; {CHOICES} begins without state"
        )
    if rebuild and not found and begin is None:
        raise RecoveryError(
            f"neither a recovery store {store} nor the consumer group {pipeline.group} says where {name} was: add {CHOICES}"
        )
    if not found and begin is None:
        say(f"{name}: first start, from the beginning of {topic.topic}")
        return
    log = KafkaLog(topic.topic, settings.brokers, settings.client, group=pipeline.group)
    timeline = timeline_of(pipeline, log, settings)
    try:
        decide = found if begin is None else {number: place(timeline, number, begin) for number in range(partitions)}
        groups = pipeline.groups if rebuild else ()
        start = resume(timeline, groups, partitions, decide, seconds(slack) * SECOND)
    finally:
        log.close()
    begin_at(store, start)
    goes_on = ", ".join(f"{number}@{offset}" for number, offset in start.decide.items())
    how = f"as {where} says" if where else f"--from {begin}"
    say(f"{name}: deciding begins at {topic.topic}/{goes_on} ({how}); {start.again:,} messages before are read for the state")


def positions(
    pipeline: Pipeline, settings: JobSettings, store: Path, partitions: int, rebuild: bool
) -> tuple[dict[int, int], str]:
    """Where the job was, by partition, and what says so; nothing if nothing does.

    A store does not know whether what it has staged was committed, where it is not gone on with; the group does.
    """
    topic, delivery = pipeline.events.topic, settings.delivery or pipeline.delivery
    same = rebuild and (made_for(store) or {}).get("topic") == topic
    if same and delivery != "exactly_once" and not stages(store, pipeline.name):
        found = kept(store, pipeline.name)
        if found:
            return found, f"the recovery store {store}"
    found = committed(settings.brokers, settings.client, pipeline.group, topic, partitions)
    return found, f"the consumer group {pipeline.group}"


def timeline_of(pipeline: Pipeline, log: KafkaLog, settings: JobSettings) -> Timeline:
    """The times of a pipeline's events in a log."""
    topic = pipeline.events
    return Timeline(log, topic.decode(f"{pipeline.name}/start", settings), topic.time, topic.time not in topic.schema.fields)


def place(timeline: Timeline, partition: int, begin: str) -> int:
    """The offset that `begin` means: earliest, latest or a time of events in ISO 8601, UTC if it does not say."""
    low, end = timeline.log.bounds(partition)
    if begin in ("earliest", "latest"):
        return low if begin == "earliest" else end
    try:
        time = datetime.fromisoformat(begin)
    except ValueError:
        raise RecoveryError(f"--from: expected earliest, latest or a time as in 2026-01-31T08:00, got {begin}") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return timeline.since(partition, int(time.timestamp()) * SECOND + time.microsecond)


def begin_at(store: Path, start: Start) -> None:
    """A store without state that begins at `start`; the one that was there is kept as NAME.old, if it ever was of use."""
    new = store.with_name(f"{store.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    start.save(new)
    put_in_place(new, store)


def unfinished(store: Path) -> None:
    """Ends what `begin_at` had begun when it was killed."""
    new = store.with_name(f"{store.name}.new")
    if not store.exists() and new.exists():
        new.rename(store)
