"""Avro on a real broker: an added field, an unknown schema, and a registry that fails in mid-stream and comes back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer
from payments import CHAMPION, decisions, settings, stream
from prometheus_client import CollectorRegistry
from test_avro_flow import FIRST, SECOND, avro, pipeline, served

from ops.broker import Broker
from ops.fake_registry import fake_registry
from ops.topics import create
from sinks.memory import MemorySink
from streams.pipeline import Decisions
from streams.positions import kept
from streams.run import run
from streams.schema_registry import RegistryError
from streams.start import store_of

EVENTS, UNKNOWN_AT = 300, 40


@pytest.mark.slow
def test_what_a_failing_registry_held_up_is_decided_when_it_is_back(
    broker: Broker, name: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = name("pay")
    with fake_registry() as registry:
        log = avro(stream(EVENTS), registry.add(FIRST), registry.add(SECOND))
        log[UNKNOWN_AT] = log[UNKNOWN_AT][0], b"\0\0\0\0\x63" + b"?"
        whole = decisions(served(pipeline(registry.address), settings(tmp_path / "whole"), log))
        create(broker.address, [events], 1, {})
        create(broker.address, [f"{events}-out", f"{events}.dead"], 1, {})
        producer = Producer({"enable.idempotence": True, "bootstrap.servers": broker.address})
        for key, value in log:
            producer.produce(events, value, key, partition=0)
        assert producer.flush(30) == 0
        like = pipeline(registry.address)
        work = replace(like, events=replace(like.events, topic=events), sinks=[Decisions(f"{events}-out", features=True)])
        values = settings(tmp_path, brokers=broker.address, recovery=True, epoch_seconds=0.01, poll_rows=20)

        answer = registry.answer
        with monkeypatch.context() as failing:
            failing.setattr(registry, "answer", lambda path: (503, {}) if path.endswith("/2") else answer(path))
            with pytest.raises(RegistryError, match=r"answers at .*503"):
                run(work, values, registry=CollectorRegistry(), sink=(first := MemorySink()), champion=CHAMPION, until_end=True)
        new = next(k for k, (_, value) in enumerate(log) if value and value[4] == 2)
        assert 0 < kept(store_of(work, values), "payments")[0] <= new
        run(work, values, registry=CollectorRegistry(), sink=(second := MemorySink()), champion=CHAMPION, until_end=True)

    found = [decisions(sink, f"{events}-out") for sink in (first, second)]
    assert 0 < len(found[0]) < len(whole)
    place = {id.rpartition("/")[2]: one for each in found for id, one in each.items()}
    assert len(place) == len(whole)
    for id, one in whole.items():
        assert place[id.rpartition("/")[2]]["score"] == one["score"]
    letters = [json.loads(letter) for sink in (first, second) for letter in sink.values(f"{events}.dead")]
    assert {(letter["code"], letter["offset"]) for letter in letters} == {("unknown_schema", UNKNOWN_AT)}
