"""Whole runs: peers that lose, double or answer wrongly, and generators that are held up, are caught and get no figures."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from doubling import Doubling

from bench.brokers import Served, broker
from bench.results import check
from bench.run import Bounds, Plan, record
from bench.show import result
from bench.systems import System
from bench.throughput import drain, fill
from ops.broker import Broker

FIGURES = ("latency_ms", "broker_latency_ms", "histogram", "throughput", "stages", "lag")
ANY_PACE = Bounds(late_p99_ms=10_000, late_max_ms=10_000, least_rate=0.0)

pytestmark = pytest.mark.slow


@pytest.fixture
def plan(embedded_broker: Broker, tmp_path: Path) -> Callable[..., Plan]:
    """Makes a plan of one second of warm-up and two measured, at 500 messages a second."""
    workload = Doubling(tmp_path / "payloads")
    prepared = workload.prepare(4_000, lambda doing, share: None)
    served = Served("embedded", embedded_broker.address, embedded_broker.process.pid)

    def make(**changes: Any) -> Plan:
        plain = {"rate": 500.0, "seconds": 2.0, "warmup": 1.0, "bounds": ANY_PACE, "stall": 3.0}
        return Plan(workload, prepared, served, tmp_path, **{**plain, **changes})

    return make


def test_a_broker_named_by_address_is_known_by_its_process(embedded_broker: Broker) -> None:
    with broker(embedded_broker.address) as served:
        assert (served.kind, served.pid) == ("embedded", embedded_broker.process.pid)


def peer(mode: str) -> System:
    script = Path(__file__).parent / "doubling.py"
    return System(mode, f"{sys.executable} {script} {mode} {{brokers}} {{input}} {{output}}")


@pytest.mark.parametrize(
    ("mode", "fault"), [("loses", "1 lost of"), ("doubles", "1 doubled of"), ("wrong", "1 wrong of"), ("dies", "I do not like")]
)
def test_a_peer_that_fails_one_message_gets_no_figures(plan: Callable[..., Plan], mode: str, fault: str) -> None:
    run = record(peer(mode), plan(), 0)
    assert not run["valid"]
    assert fault in run["why_not"]
    assert not [name for name in FIGURES if run.get(name) is not None]


def test_a_peer_that_is_right_has_figures_of_what_was_measured(plan: Callable[..., Plan]) -> None:
    made = plan(schedule="poisson")
    run = record(peer("right"), made, 0)
    assert run["why_not"] is None
    assert (run["lost"], run["doubled"], run["wrong"]) == (0, 0, 0)
    assert run["latency_ms"]["count"] == pytest.approx(2 * 500 * 2 / 3, rel=0.1)
    assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["max"]
    assert run["cpu"]["system"] is not None
    check(result("latency", made.workload, made.prepared, {}, [peer("right")], [run]))


def test_a_generator_that_is_slow_is_behind_its_schedule(plan: Callable[..., Plan]) -> None:
    run = record(peer("right"), plan(generator={"hold_up_ms": 20}, bounds=Bounds()), 0)
    assert "generator behind its schedule" in run["why_not"]
    assert "latency_ms" not in run


def test_a_generator_that_is_stopped_for_a_moment_is_behind_its_schedule(plan: Callable[..., Plan]) -> None:
    def hold(line: str) -> None:
        if "warm-up" in line:
            threading.Thread(target=stop_for_a_while).start()

    def stop_for_a_while() -> None:
        time.sleep(2.0)
        generators = [child for child in psutil.Process().children() if "bench.load" in child.cmdline()]
        assert len(generators) == 1
        generators[0].send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        generators[0].send_signal(signal.SIGCONT)

    bounds = Bounds(late_p99_ms=10_000, least_rate=0.0)
    run = record(peer("right"), plan(bounds=bounds), 0, hold)
    assert "expected no message later than 200 ms" in run["why_not"]
    assert run["generator"]["late_max_ms"] > 400
    assert "latency_ms" not in run


@pytest.mark.parametrize(("mode", "fault"), [("right", None), ("loses", "1 lost of"), ("doubles", "1 doubled of")])
def test_a_drain_is_checked_too(plan: Callable[..., Plan], name: Callable[[str], str], mode: str, fault: str | None) -> None:
    made, topic = plan(), name("full")
    fill(made, topic)
    run = drain(peer(mode), made, topic, 0, 20.0)
    if fault:
        assert fault in run["why_not"]
        assert "throughput" not in run
    else:
        assert run["finished"]
        assert (run["lost"], run["doubled"], run["wrong"]) == (0, 0, 0)
