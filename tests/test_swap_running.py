"""A job that runs takes over a new version of its model by itself, in every worker, and goes on where a bad one comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from confluent_kafka import Producer
from onnx import numpy_helper
from test_restart import PARTITIONS, ROOT, filled, read, running

from bench.proving.job import NAME, event
from models.registry import record, resolve
from models.shadow import Compared, shadow_folder
from models.spec import Input, ModelSpec
from ops.beside import child
from ops.broker import Broker
from ops.model_shadow import PROCESS
from streams.settings import JobSettings

FILE = """
from bench.proving.job import pipeline
job = pipeline("{name}")
"""


def published(settings: JobSettings, folder: Path, change: Callable[[Path], None], alias: str = "champion") -> None:
    """A version like the champion with a change."""
    folder.mkdir()
    for path in resolve(settings.registry_uri, NAME, into=settings.home / "models").folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    record(settings.registry_uri, NAME, folder, params={}, metrics={}, alias=alias)


def other_weights(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(np.full((4, 1), 1.0, np.float32), "w"))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def other_name(folder: Path) -> None:
    spec = ModelSpec.read(folder)
    ModelSpec(spec.name, (*spec.inputs[:3], Input("nobody_knows", "number"))).write(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "restart"), [(1, False), (2, False), (2, True)])
def test_a_new_version_decides_within_seconds_and_a_bad_one_never(
    apache_kafka: Broker, workers: int, restart: bool, tmp_path: Path
) -> None:
    name, log, file = f"swap{workers}{restart}".lower(), tmp_path / "log", tmp_path / "job.py"
    settings = filled(apache_kafka, name, tmp_path / "home", workers=workers, model_look_seconds=0.5)
    file.write_text(FILE.format(name=name))
    producer, sent = Producer({"enable.idempotence": True, "bootstrap.servers": apache_kafka.address}), 1000

    def deciding() -> dict[int, int]:
        """Sends some messages, and says by which version how many decisions are there."""
        nonlocal sent
        for partition in range(PARTITIONS):
            for n in range(10):
                producer.produce(f"{name}-in", event(f"p{partition}", "s", sent + n), None, partition)
        sent += 10
        assert producer.flush(30) == 0
        found = read(apache_kafka, f"{name}-out", PARTITIONS)
        versions = [one["model_version"] for one in found]
        return {version: versions.count(version) for version in set(versions)}

    def until(versions: set[int], words: str = "") -> None:
        deadline = time.monotonic() + 90
        while not (deciding().keys() >= versions and words in log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()

    with running(f"{file}:job", settings, log, "--from", "earliest", restart=restart) as process:
        until({1})
        published(settings, tmp_path / "two", other_weights)
        until({1, 2}, "version 2 decides from now on, before it version 1 did")
        published(settings, tmp_path / "three", other_name)
        until({1, 2}, "version 3 is refused: model faults version 3: it has inputs that are not features of pipeline")
        before = deciding()
        after = deciding()
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, log.read_text()
    assert after[1] == before[1], "the last decisions are not of the second version"
    assert after[2] > before[2]
    words = log.read_text()
    assert words.count("version 2 decides from now on") == words.count("version 3 is refused") == workers
    found = read(apache_kafka, f"{name}-out", PARTITIONS)
    assert len({one["decision_id"] for one in found}) == len(found) == PARTITIONS * (400 + sent - 1000)
    for one in found:
        total = sum(value or 0.0 for value in one["features"].values())
        expected = 1 / (1 + np.exp(-total * (1e-7 if one["model_version"] == 1 else 1.0)))
        assert one["score"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a fork's name is set there")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_shadow_scores_what_all_workers_decide_and_leaves_with_the_job(
    apache_kafka: Broker, workers: int, tmp_path: Path
) -> None:
    name, log, file = f"shadow{workers}", tmp_path / "log", tmp_path / "job.py"
    settings = filled(apache_kafka, name, tmp_path / "home", workers=workers, model_look_seconds=0.5)
    file.write_text(FILE.format(name=name))
    folder = shadow_folder(settings.home / "models", name)
    producer, sent = Producer({"enable.idempotence": True, "bootstrap.servers": apache_kafka.address}), 1000

    def more() -> None:
        nonlocal sent
        for partition in range(PARTITIONS):
            for n in range(10):
                producer.produce(f"{name}-in", event(f"p{partition}", "s", sent + n), None, partition)
        sent += 10
        assert producer.flush(30) == 0
        time.sleep(0.3)

    with running(f"{file}:job", settings, log, "--from", "earliest") as process:
        published(settings, tmp_path / "two", other_weights, alias="shadow")
        deadline = time.monotonic() + 90
        while (found := Compared.read(folder)) is None or found.rows < 50 * PARTITIONS:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            more()
        (watch,) = [each for each in psutil.Process(process.pid).children(recursive=True) if each.name() == PROCESS]
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, log.read_text()
        watch.wait(20)
    assert (found.champion, found.shadow, found.failed) == (1, 2, 0)
    assert found.largest > 0.1, "other weights, other scores"
    decided = read(apache_kafka, f"{name}-out", PARTITIONS)
    assert {one["model_version"] for one in decided} == {1}
    assert len({one["decision_id"] for one in decided}) == len(decided) == PARTITIONS * (400 + sent - 1000)


def test_a_process_beside_a_job_is_in_its_session_and_not_in_its_process_group() -> None:
    """Priorities count within a session only, and Ctrl-C is for the job."""
    with child(["ops.model_watch", "flights", "60"]) as process:
        assert os.getsid(process.pid) == os.getsid(0)
        assert os.getpgid(process.pid) == process.pid


def test_the_process_beside_a_job_is_gone_when_the_job_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ops.model_watch", "flights", "60"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    time.sleep(1)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
