"""Killed on Apache Kafka: nothing lost, nothing doubled, the state in what is written right; and a planted bug is found."""

import json
from pathlib import Path

import pytest

from bench.faults import main
from ops.broker import Broker

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    "mode", [pytest.param("exactly_once", marks=pytest.mark.slow), pytest.param("at_least_once", marks=pytest.mark.long)]
)
def test_killed_again_and_again_nothing_is_lost_or_doubled(apache_kafka: Broker, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "faults.json"
    arguments = ["--kills", "6", "--chunk", "3", "--workers", "1,2", "--points", "snapshot.before,produce.after,random"]
    arguments += ["--mode", mode, "--seed", "3", "--json", str(file), "--name", mode.replace("_", "-")]
    assert main([*arguments, "--broker", apache_kafka.address]) == 0
    seen = json.loads(file.read_text())["seen"]
    assert seen["hit"] == {"produce.after": 2, "random": 2, "snapshot.before": 2}
    assert seen["decided"] > 500
    assert seen["dead"] > 5


@pytest.mark.long
def test_a_commit_before_the_epoch_is_durable_is_found(apache_kafka: Broker, tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    arguments = ["--plant", "commit-in-snapshot", "--kills", "3", "--workers", "1", "--points", "commit.after"]
    assert main([*arguments, "--name", "planted", "--json", str(file), "--broker", apache_kafka.address]) == 1
    assert json.loads(file.read_text())["seen"]["repeats"] > 0


@pytest.mark.long
@pytest.mark.parametrize("fault", [["--rescale", "1,3,2"], ["--grow"], ["--leader-change"], ["--outage", "32"]])
def test_other_faults_under_load_lose_and_double_nothing(tmp_path: Path, fault: list[str], apache_kafka: Broker) -> None:
    assert main([*fault, "--json", str(tmp_path / "faults.json")]) == 0
