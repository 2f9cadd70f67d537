"""The consumers in docs/consumers/, in three languages, on a real Apache Kafka: they act on the same decisions, once each."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from ops.broker import Broker, find_apache

FOLDER = Path(__file__).parent.parent / "docs" / "consumers"
IDLE = 8.0
pytestmark = pytest.mark.slow

Commands = dict[str, tuple[list[str], Path]]  # by language: the command, and where it is run


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """How each is started, and where."""
    home, folder = find_apache(), tmp_path_factory.mktemp("consumers")
    if home is None or shutil.which("java") is None:
        pytest.skip("NO APACHE KAFKA or no java: the consumer in Java is NOT proven without them")
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("NO NODE or npm: the consumer in JavaScript is NOT proven without them")
    shutil.copy(FOLDER / "package.json", folder)
    shutil.copy(FOLDER / "decisions.mjs", folder)
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"NO KAFKAJS, the consumer in JavaScript is NOT proven: npm install says {done.stderr.strip()[-300:]}")
    java = ["java", "-cp", f"{home / 'libs'}/*", str(FOLDER / "Decisions.java")]
    return {
        "python": ([sys.executable, str(FOLDER / "decisions.py")], FOLDER),
        "java": (java, FOLDER),
        "javascript": (["node", "decisions.mjs"], folder),
    }


@pytest.fixture
def log(apache_kafka: Broker, name: Callable[[str], str]) -> Callable[..., str]:
    """Writes messages to a topic of two partitions in one transaction; returns its name."""
    topic = name("decisions")
    admin = AdminClient({"bootstrap.servers": apache_kafka.address})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": apache_kafka.address, "transactional.id": topic, "log_level": 0})
    for attempt in range(20):  # a new broker makes its topic of transactions first
        try:
            producer.init_transactions(10)
            break
        except Exception:
            if attempt == 19:
                raise
            time.sleep(0.5)

    def write(messages: list[bytes], commit: bool = True) -> str:
        producer.begin_transaction()
        for k, message in enumerate(messages):
            producer.produce(topic, message, partition=k % 2)
        producer.flush()
        producer.commit_transaction() if commit else producer.abort_transaction()
        return topic

    return write


def decision(k: int, **more: Any) -> bytes:
    """The k-th decision as headrace writes it; every seventh has no score."""
    lost = k % 7 == 0
    kind = ("late", "watch", "on_time")[k % 3]
    told = {
        "decision_id": f"flights/flight-events/{k % 2}/{k // 2}", "event_id": k, "decision": kind,
        "score": None if lost else round(k % 97 / 97, 7), "reasons": ["no_score" if lost else "score<0.3"], "model": "flights",
        "model_version": 1, "flags": ["fallback"] if lost else [], "event_time": "2013-10-01T09:00:00.000000Z",
        "decided_at": "2026-01-05T12:00:00.123456Z", "schema_version": 1,
    }  # fmt: skip
    return json.dumps(told | more).encode()


def total(ks: range) -> dict[str, Any]:
    """What acting once on each of these decisions comes to."""
    told = [json.loads(decision(k)) for k in ks]
    kinds = sorted({each["decision"] for each in told})
    return {
        "decisions": len(told),
        "millionths": sum(int(each["score"] * 1e6 + 0.5) for each in told if each["score"] is not None),
        "flagged": sum(bool(each["flags"]) for each in told),
        "by_decision": {kind: sum(each["decision"] == kind for each in told) for kind in kinds},
    }


def run_all(commands: Commands, broker: Broker, topic: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """Each consumer, at once, in a group of its own."""

    def one(language: str) -> subprocess.CompletedProcess[str]:
        command, folder = commands[language]
        told = ["--brokers", broker.address, "--topic", topic, "--group", f"{topic}-{language}", "--idle", str(IDLE)]
        return subprocess.run([*command, *told], cwd=folder, capture_output=True, text=True, timeout=180, check=False)

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(commands, pool.map(one, commands), strict=True))


def test_three_languages_act_once_on_the_same_decisions_and_go_on_where_they_were(
    commands: Commands, apache_kafka: Broker, log: Callable[..., str]
) -> None:
    log([decision(k) for k in range(3000)])
    log([decision(k, score=0.25) for k in range(3000, 3100)], commit=False)  # of an epoch that was given up
    log([decision(k, why={"new": ["field"]}) for k in range(3000, 4000)])
    topic = log([decision(k, score=0.9, model_version=2) for k in range(2500, 3500)])  # decided again after a crash
    for language, done in run_all(commands, apache_kafka, topic).items():
        assert done.returncode == 0, (language, done.stderr)
        assert json.loads(done.stdout) == total(range(4000)) | {"repeats": 1000}, language

    log([decision(k, score=0.1) for k in range(3900, 4100)])  # repeats of what was acted on before the consumers were stopped
    for language, done in run_all(commands, apache_kafka, topic).items():
        assert done.returncode == 0, (language, done.stderr)
        told = json.loads(done.stdout)
        assert (told["decisions"], told["repeats"]) == (100, 100), (language, told)


def test_a_message_that_is_not_as_described_stops_them_and_is_named(
    commands: Commands, apache_kafka: Broker, log: Callable[..., str]
) -> None:
    broken = json.loads(decision(2))
    del broken["decision_id"]
    topic = log([decision(0), decision(1), json.dumps(broken).encode()])
    for language, done in run_all(commands, apache_kafka, topic).items():
        assert done.returncode == 1, (language, done.stdout)
        for said in ("decision_id", "expected str", "1"):
            assert said in done.stderr, (language, done.stderr)
