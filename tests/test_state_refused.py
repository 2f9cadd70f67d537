"""A recovery store that a job cannot go on with is refused in one line that names the command that does go on."""

import json
import pickle
import pickletools
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from payments import NAMES, Arithmetic, Payment, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild import ADDED, EPOCH, champion_of, going, half, quick, spread

from features.schema import Integer
from features.spec import Derived, Fields
from features.state import STATE_VERSION
from models.policy import Bands
from models.reference import build_reference
from sinks.memory import MemorySink
from sinks.memory_log import MemoryLane, MemoryLog
from streams.job import Champion
from streams.migrate import migrate
from streams.pipeline import Decisions, Drift, Pipeline
from streams.positions import kept
from streams.run import run
from streams.settings import JobSettings
from streams.shards import FIRST_EPOCH, VERSION
from streams.source import MemorySource
from streams.start import RecoveryError, check, store_of
from streams.store import Snapshot, Store

LOGS = spread(stream(1200), 2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that was stopped halfway, whose store has two partitions."""
    made = tmp_path_factory.mktemp("home")
    half(made, quick("arrival"), LOGS, MemorySink(), 300)
    migrate(quick("arrival"), settings(made), "payments", 2)
    return made


def part(store: Path, number: int = 0) -> Path:
    return store / f"part-{number}.sqlite3"


def asked(file: Path, *queries: str) -> None:
    with closing(sqlite3.connect(file)) as opened, opened:
        for query in queries:
            opened.execute(query)


def of_another_pipeline(store: Path) -> None:
    for number in range(2):
        asked(part(store, number), "UPDATE snaps SET step_id = replace(step_id, 'payments.', 'refunds.')")


def of_an_older_state(store: Path) -> None:
    made = json.loads((store / "made").read_text())
    (store / "made").write_text(json.dumps(made | {"state version": made["state version"] - 1}))


def of_older_features(store: Path) -> None:
    for number in range(2):
        with closing(sqlite3.connect(part(store, number))) as opened, opened:
            found = opened.execute("SELECT rowid, ser_change FROM snaps WHERE step_id = 'payments.features'").fetchall()
            for row, data in found:
                state = pickle.loads(data)
                for group in state.get("groups", ()):
                    group["version"] -= 1
                opened.execute("UPDATE snaps SET ser_change = ? WHERE rowid = ?", (pickle.dumps(state), row))


def with_damaged_head(store: Path) -> None:
    part(store).write_bytes(b"no store" + part(store).read_bytes()[8:])


def with_damaged_middle(store: Path) -> None:
    data = bytearray(part(store).read_bytes())
    for page in range(4096 * 4, len(data), 4096):
        data[page : page + 64] = b"\xff" * 64
    part(store).write_bytes(data)


def cut_short(store: Path) -> None:
    part(store, 1).write_bytes(part(store, 1).read_bytes()[: 4096 * 3])


def with_other_bytes(store: Path) -> None:
    """Of one snapshot, where SQLite has no reason to look."""
    for number in range(2):
        asked(part(store, number), "UPDATE snaps SET ser_change = substr(ser_change, 1, 100) WHERE state_key LIKE '003.%'")


def with_code(store: Path) -> None:
    """As whoever can write to the store might try: Bytewax would run it."""
    with closing(sqlite3.connect(part(store))) as opened, opened:
        opened.execute("UPDATE snaps SET ser_change = ?", (b"cos\nsystem\n(S'false'\ntR.",))


def mixed(store: Path) -> None:
    asked(part(store), "UPDATE parts SET part_count = 5")


def doubled(store: Path) -> None:
    shutil.copy(part(store), part(store, 7))


def with_an_older_copy(store: Path) -> None:
    asked(part(store, 1), "DELETE FROM commits", "INSERT INTO commits (part_index, commit_epoch) VALUES (1, 1000000)")


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda store: part(store, 1).unlink(), "part-1.sqlite3 of 2 partitions is missing"),
    (lambda store: [part(store, number).unlink() for number in range(2)], "its files (sqlite3) are gone"),
    (lambda store: (store / "made").write_text("{nonsense"), f"expected state version {VERSION}, got none"),
    (of_another_pipeline, "expected the state of pipeline payments, got that of refunds"),
    (of_an_older_state, f"expected state version {VERSION}, got {VERSION - 1}"),
    (of_older_features, f"expected state of version {STATE_VERSION}, got {STATE_VERSION - 1}"),
    (with_damaged_head, "part-0.sqlite3 cannot be read: file is not a database"),
    (with_damaged_middle, "part-0.sqlite3"),
    (cut_short, "part-1.sqlite3"),
    (with_other_bytes, "snapshot of payments.features 003."),
    (with_code, "cannot be read: expected plain data, got os.system"),
    (mixed, "part-0.sqlite3 is one of 5 and part-1.sqlite3 one of 2 partitions"),
    (doubled, "part-0.sqlite3 and part-7.sqlite3 are both partition 0"),
    (with_an_older_copy, "partition 1 is newer than the others"),
    (lambda store: part(store).write_bytes(b""), "part-0.sqlite3 cannot be read: no such table: parts"),
]


@pytest.mark.slow
@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_what_is_damaged_is_refused_with_the_command_that_goes_on(tmp_path: Path, home: Path, damage: int) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    pipeline, job = quick("arrival"), settings(tmp_path, recovery=True)
    store = store_of(pipeline, job)
    check(pipeline, job, "pay.py:job")
    spoil, said = DAMAGES[damage]
    spoil(store)
    with pytest.raises(RecoveryError) as refused:
        check(pipeline, job, "pay.py:job")
    message = str(refused.value)
    assert message.startswith(f"recovery store {store}: ")
    assert said in message
    assert "headrace run pay.py:job --rebuild makes the state anew from the topic" in message
    assert "\n" not in message


def test_another_number_of_partitions_than_set_is_refused(tmp_path: Path, home: Path) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    pipeline, job = quick("arrival"), settings(tmp_path, recovery_partitions=3)
    said = (
        r"expected 3 recovery partitions .*, got 2: headrace state migrate pay moves the state to as many, or headrace run pay"
    )
    with pytest.raises(RecoveryError, match=said):
        check(pipeline, job, "pay")
    migrate(pipeline, job, "pay")
    check(pipeline, job, "pay")
    going(tmp_path, pipeline, LOGS, MemorySink())


def test_a_store_is_made_with_as_many_partitions_as_set(tmp_path: Path) -> None:
    pipeline = quick("arrival")
    job = pipeline, settings(tmp_path, recovery=True, epoch_seconds=EPOCH, recovery_partitions=3)
    source = MemorySource(LOGS, rows=40)
    run(*job, registry=CollectorRegistry(), source=source, sink=MemorySink(), champion=champion_of(pipeline))
    with Store(store_of(*job)) as store:
        assert (store.count, store.missing) == (3, [])
    assert kept(store_of(*job), "payments") == {number: len(log) for number, log in enumerate(LOGS)}


def test_a_store_that_was_only_begun_is_made_again_and_one_in_use_is_not(tmp_path: Path, home: Path) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    pipeline, store = quick("arrival"), store_of(quick(), settings(tmp_path))
    (store / "made").unlink()
    with pytest.raises(RecoveryError, match=r"made is gone\): headrace run payments --rebuild"):
        going(tmp_path, pipeline, LOGS, MemorySink())
    for number in range(2):
        asked(part(store, number), "DELETE FROM exs", "DELETE FROM fronts", "DELETE FROM snaps", "DELETE FROM commits")
    going(tmp_path, pipeline, LOGS, MemorySink())
    check(pipeline, settings(tmp_path))


@pytest.mark.parametrize("spoil", [with_damaged_head, with_damaged_middle, lambda store: part(store, 1).unlink()])
def test_where_a_damaged_store_was_it_does_not_say(tmp_path: Path, home: Path, spoil: Callable[[Path], object]) -> None:
    """So that --rebuild asks the consumer group, instead of going on with half of the positions."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    store = store_of(quick(), settings(tmp_path))
    assert kept(store, "payments")
    spoil(store)
    assert kept(store, "payments") == {}


def classes(data: bytes) -> Iterator[str]:
    """What a pickle imports."""
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif code.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif code.name.startswith("EXT"):
            yield code.name
        elif isinstance(argument, str):
            texts.append(argument)


def test_nothing_that_is_stored_is_of_a_class(tmp_path: Path) -> None:
    """A job with all that keeps state: in event order, with drift, delivered exactly once. A rename of whatever class or module
    orphans nothing."""
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(19_700, 19_740), 200)
    matrix = rng.normal(size=(len(days), len(NAMES))).astype(np.float32)
    scores = rng.random(len(days)).astype(np.float32)
    reference = build_reference(NAMES, [False] * len(NAMES), matrix, scores, days * 86_400_000_000)
    pipeline = replace(payments(Drift("payment-drift"), order="event"), delivery="exactly_once")
    job = pipeline, settings(tmp_path, recovery=True, epoch_seconds=0.002)
    written = MemoryLog()
    parts = {"source": MemorySource(LOGS, rows=10), "lanes": lambda shard: MemoryLane(written, str(shard))}
    run(*job, registry=CollectorRegistry(), champion=Champion(1, Arithmetic(), reference), **parts)
    with Store(store_of(*job)) as store:
        steps = {step.rpartition(".")[2] for step in store.steps()}
        assert steps == {"event", "features", "gather", "sink", "drift", "judge"}
        for file in store.files:
            with closing(sqlite3.connect(file)) as opened:
                for step, data in opened.execute("SELECT step_id, ser_change FROM snaps WHERE ser_change IS NOT NULL"):
                    assert list(classes(data)) == [], step
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert "Fields" in " ".join(classes(pickle.dumps([Fields("amount")], protocol)))
    with pytest.raises(RecoveryError, match=r"expected plain data, got features.spec.Fields"):
        Snapshot("step", "key", 1, pickle.dumps(Fields("amount")), "").load()


@contextmanager
def renamed() -> Iterator[int]:
    """All of our classes are called otherwise; yields how many."""
    ours = {
        each
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in ("features", "kernels", "models", "sinks", "streams")
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == name
    }
    names = {each: (each.__name__, each.__qualname__) for each in ours}
    for each, (name, qualified) in names.items():
        each.__name__, each.__qualname__ = f"Other{name}", f"Other{qualified}"
    try:
        yield len(ours)
    finally:
        for each, (name, qualified) in names.items():
            each.__name__, each.__qualname__ = name, qualified


def test_whatever_classes_are_called_what_was_stored_is_gone_on_with(tmp_path: Path, home: Path) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    before = kept(store_of(quick(), settings(tmp_path)), "payments")
    with renamed() as classes:
        assert classes > 100
        pipeline, sink = quick("arrival"), MemorySink()
        assert type(pipeline).__name__ == "OtherPipeline"
        check(pipeline, settings(tmp_path))
        going(tmp_path, pipeline, LOGS, sink)
    decided = sum(b'"paid"' in value for number, log in enumerate(LOGS) for _, value in log[before[number] :])
    assert len(sink.values("verdicts")) == decided


def anew(**changes: Any) -> Pipeline:
    return replace(quick("arrival"), **changes)


def topic(**changes: Any) -> Pipeline:
    return replace(quick("arrival"), events=replace(quick("arrival").events, **changes))


FEATURES = list(quick().features)
REBUILD, MIGRATE = "headrace run pay --rebuild", "headrace state migrate pay"
CHANGES: dict[str, tuple[Pipeline, dict[str, Any], str]] = {
    "nothing": (anew(), {}, ""),
    "window added": (anew(features=[*FEATURES, ADDED]), {}, REBUILD),
    "window removed": (anew(features=FEATURES[1:]), {}, REBUILD),
    "window resized": (anew(features=[replace(FEATURES[0], over="30m"), *FEATURES[1:]]), {}, REBUILD),
    "aggregate added": (anew(features=[FEATURES[0], replace(FEATURES[1], aggs=("mean",)), FEATURES[2]]), {}, REBUILD),
    "condition": (anew(features=[FEATURES[0], replace(FEATURES[1], where="True"), FEATURES[2]]), {}, REBUILD),
    "tile": (anew(features=[replace(FEATURES[0], tile="1m"), *FEATURES[1:]]), {}, REBUILD),
    "half-life": (anew(features=[replace(FEATURES[0], half_life="10m"), *FEATURES[1:]]), {}, REBUILD),
    "entity": (anew(features=[replace(FEATURES[0], entity="shop"), *FEATURES[1:]]), {}, REBUILD),
    "order of windows": (anew(features=[FEATURES[0], FEATURES[2], FEATURES[1]]), {}, REBUILD),
    "order of entities": (anew(features=[*FEATURES[1:], FEATURES[0]]), {}, REBUILD),
    "shards": (anew(shards=3), {}, MIGRATE),
    "recovery partitions": (anew(), {"recovery_partitions": 4}, MIGRATE),
    "order": (topic(order="event"), {}, REBUILD),
    "time": (topic(time="_time"), {}, REBUILD),
    "topic": (topic(topic="other"), {}, REBUILD),
    "order by settings": (anew(), {"order": "event"}, REBUILD),
    "type of a field": (topic(schema=replace(Payment, fields=Payment.fields | {"amount": Integer(low=0)})), {}, ""),
    "field as a feature": (anew(features=[*FEATURES, Fields("amount")]), {}, ""),
    "derived": (anew(features=[*FEATURES, Derived("double", "amount * 2")]), {}, ""),
    "decide_on": (anew(decide_on="True"), {}, ""),
    "policy": (anew(policy=Bands(block=0.2, otherwise="allow")), {}, ""),
    "sinks": (anew(sinks=[Decisions("elsewhere")]), {}, ""),
    "most_entities": (anew(most_entities=5), {}, ""),
    "workers": (anew(), {"workers": 5}, ""),
    "delivery": (anew(delivery="exactly_once"), {}, ""),
    "delivery by settings": (anew(), {"delivery": "exactly_once"}, ""),
    "epoch": (anew(), {"epoch_seconds": 5.0}, ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_gone_on_with_or_refused_as_the_documentation_says(home: Path, change: str) -> None:
    pipeline, values, command = CHANGES[change]
    job: JobSettings = settings(home, **values)
    if not command:
        assert check(pipeline, job, "pay") > FIRST_EPOCH
        return
    with pytest.raises(RecoveryError) as refused:
        check(pipeline, job, "pay")
    assert command in str(refused.value)
    if command == REBUILD:
        assert MIGRATE not in str(refused.value)


def test_another_name_is_another_job(home: Path) -> None:
    assert not store_of(anew(name="renamed"), settings(home)).exists()
