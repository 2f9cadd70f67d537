"""The client of the schema registry: what it asks, how often, what it makes of the answers, and that it gives nothing away."""

from collections.abc import Iterator
from typing import Any

import pytest

from kernels.avro.writer import Type
from kernels.flat_json.naive import Fault
from ops.fake_registry import FakeRegistry, fake_registry
from streams.schema_registry import RegistryError, SchemaRegistry


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as made:
        yield made


class Time:
    """A clock that only sleeping and hands move."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def clock(self) -> float:
        return self.now


def client(registry: FakeRegistry, time: Time, login: str = "") -> SchemaRegistry:
    return SchemaRegistry(registry.address + "/", login, clock=time.clock, sleep=time.sleep)


def test_a_schema_is_asked_for_once_and_an_unknown_id_again_after_a_while(registry: FakeRegistry) -> None:
    time = Time()
    asks = client(registry, time)
    registry.add('"int"')
    found = [asks.find(1), asks.find(1)]
    assert isinstance(found[0], Type)
    assert found[0] is found[1]
    for _ in range(2):
        missing = asks.find(2)
        assert isinstance(missing, Fault)
        assert missing.code == "unknown_schema"
    assert registry.asked == ["/schemas/ids/1", "/schemas/ids/2"]
    registry.add('"long"')
    time.now = 11.0
    assert isinstance(asks.find(2), Type)


def test_references_are_followed(registry: FakeRegistry) -> None:
    inner: dict[str, Any] = {"schema": '{"type": "record", "name": "a.In", "fields": []}'}
    named = {"name": "a.In", "subject": "in/ner", "version": 3}
    registry.subjects["in%2Fner", 3] = inner
    id = registry.add({"type": "array", "items": "a.In"}, references=[named])
    found = client(registry, Time()).find(id)
    assert isinstance(found, Type)
    assert found.parts[0].kind == "record"
    lost = registry.add('"int"', references=[named | {"version": 4}])
    refused = client(registry, Time()).find(lost)
    assert isinstance(refused, Fault)
    assert (refused.code, "in/ner version 4" in refused.got) == ("bad_schema", True)


@pytest.mark.parametrize(("schema", "more"), [('"nonsense"', {}), ("{", {}), ('"int"', {"schemaType": "PROTOBUF"})])
def test_what_is_no_schema_of_avro_is_a_reason_to_refuse_messages(
    registry: FakeRegistry, schema: str, more: dict[str, Any]
) -> None:
    found = client(registry, Time()).find(registry.add(schema, **more))
    assert isinstance(found, Fault)
    assert found.code == "bad_schema"


def test_it_is_asked_five_times_and_then_no_more(registry: FakeRegistry) -> None:
    time = Time()
    registry.failing = 503
    with pytest.raises(RegistryError, match=r"no schema registry answers at http://127\.0\.0\.1:.*503.*asked 5 times"):
        client(registry, time).find(1)
    assert time.slept == [0.25, 0.5, 1.0, 2.0]
    assert len(registry.asked) == 5


@pytest.mark.parametrize("status", [401, 403, 301])
def test_a_refusal_is_said_at_once(registry: FakeRegistry, status: int) -> None:
    registry.failing = status
    with pytest.raises(RegistryError, match=f"refuses /schemas/ids/1: it answers {status}"):
        client(registry, Time(), "me:secret").find(1)
    assert len(registry.asked) == 1
    assert registry.logins == ["Basic bWU6c2VjcmV0"]


@pytest.mark.parametrize("address", ["localhost:8081", "me:secret@host:8081", "ftp://host", ""])
def test_an_address_that_is_none_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT") as raised:
        SchemaRegistry(address)
    assert "secret" not in str(raised.value)
