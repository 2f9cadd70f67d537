"""Kafka's own tools see how far a job is: its lag falls to 0 while it drains a topic."""

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from payments import CHAMPION, Arithmetic, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild import spread
from test_rebuild_kafka import fill, written

from ops.broker import Broker, find_apache
from streams.job import Champion
from streams.pipeline import Decisions, Pipeline
from streams.run import run

EVENTS, ROWS, LOOKS = 24_000, 100, 4


class Slow(Arithmetic):
    """Takes its time over each batch until it was looked at often enough."""

    seconds = 0.5

    def infer(self, matrix: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        time.sleep(self.seconds)
        return super().infer(matrix, out)


def described(brokers: str, group: str) -> dict[int, tuple[int, int]]:
    """Position and lag by partition, as `kafka-consumer-groups.sh --describe` prints them; nothing of what it does not know."""
    home = find_apache()
    assert home is not None
    command = [home / "bin/kafka-consumer-groups.sh", "--bootstrap-server", brokers, "--describe", "--group", group]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    rows = [line.split() for line in told.splitlines() if line.strip()]
    header = next((row for row in rows if row[0] == "GROUP"), None)
    if header is None:
        return {}
    places = [header.index(name) for name in ("PARTITION", "CURRENT-OFFSET", "LAG")]
    found = [[row[place] for place in places] for row in rows if row[0] == group]
    return {int(partition): (int(position), int(lag)) for partition, position, lag in found if lag.isdigit()}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_kafkas_own_tool_shows_the_lag_falling_to_0(
    apache_kafka: Broker, tmp_path: Path, name: Callable[[str], str], delivery: str
) -> None:
    """What it shows is never ahead of what is decided, and falls from look to look."""
    topic, stop = name("lag"), threading.Event()
    logs = spread(stream(EVENTS), 2)
    fill(apache_kafka.address, topic, logs)
    pipeline: Pipeline = replace(payments(), name=name("payments"), decide_on="True", sinks=[Decisions(f"{topic}-out")])
    pipeline = replace(pipeline, events=replace(pipeline.events, topic=topic), delivery=delivery)
    job = pipeline, settings(tmp_path, brokers=apache_kafka.address, recovery=True, epoch_seconds=0.25, poll_rows=ROWS)
    slow, raised = Slow(), list[BaseException]()

    def go() -> None:
        try:
            run(*job, registry=CollectorRegistry(), champion=Champion(1, slow, None), stop=stop)
        except BaseException as error:  # noqa: BLE001 - Bytewax raises panics
            raised.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    looks: list[int] = []
    try:
        deadline = time.monotonic() + 150
        while not raised and time.monotonic() < deadline and (not looks or looks[-1]):
            found = described(apache_kafka.address, pipeline.group)
            if len(found) == len(logs):
                ends = {number: position + lag for number, (position, lag) in found.items()}
                assert ends == {number: len(log) for number, log in enumerate(logs)}
                looks.append(sum(lag for _, lag in found.values()))
                slow.seconds = 0.0 if len(looks) >= LOOKS else slow.seconds
                decided = len(written(apache_kafka.address, f"{topic}-out"))
                assert EVENTS - looks[-1] <= decided
    finally:
        stop.set()
        thread.join(60)
    assert not raised
    print(f"{delivery}: lag {', '.join(f'{lag:,}' for lag in looks)}")
    assert looks[-1] == 0
    assert looks == sorted(looks, reverse=True)
    assert len(set(looks)) > LOOKS // 2, "it was drained before it could be watched"


@pytest.mark.slow
def test_a_partition_whose_messages_are_gone_is_gone_on_with(
    apache_kafka: Broker, tmp_path: Path, name: Callable[[str], str]
) -> None:
    """It begins at 20 and is empty when the job starts first, and when it starts again."""
    topic, logs = name("gone"), spread(stream(60), 2)
    fill(apache_kafka.address, topic, logs)
    admin = AdminClient({"bootstrap.servers": apache_kafka.address})
    (deleted,) = admin.delete_records([TopicPartition(topic, 1, len(logs[1]))]).values()
    assert deleted.result(30).low_watermark == len(logs[1])
    pipeline: Pipeline = replace(payments(), name=name("payments"), decide_on="True", sinks=[Decisions(f"{topic}-out")])
    pipeline = replace(pipeline, events=replace(pipeline.events, topic=topic))
    job = pipeline, settings(tmp_path, brokers=apache_kafka.address, recovery=True, epoch_seconds=0.25)
    for _ in range(2):
        run(*job, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
    assert len(written(apache_kafka.address, f"{topic}-out")) == len(logs[0])
    fill(apache_kafka.address, topic, [[], logs[1][:3]])
    run(*job, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
    assert len(written(apache_kafka.address, f"{topic}-out")) == len(logs[0]) + 3
