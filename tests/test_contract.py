"""A change of a message that would break who reads or writes it is refused, with what it breaks."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.cli import run_command
from ops.contract import NoContractError, breaks, load

HERE = Path(__file__).parent
NOW = load(HERE.parent / "docs" / "asyncapi.yaml")


def changed(change: Callable[[dict[str, Any]], Any]) -> list[str]:
    """What a change of the schemas breaks."""
    new = copy.deepcopy(NOW)
    change(new["components"]["schemas"])
    return [str(each) for each in breaks(NOW, new)]


def test_what_was_promised_still_holds() -> None:
    found = breaks(load(HERE / "contract_flights.yaml"), NOW)
    assert not found, "this breaks who reads decisions or writes events: " + "; ".join(map(str, found))


BREAKING: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (
        lambda s: (s["Decision"]["properties"].pop("flags"), s["Decision"]["required"].remove("flags")),
        "flight-decisions decision.flags: expected a field that is always there, may now be gone",
    ),
    (
        lambda s: s["Decision"]["properties"].pop("features"),
        "flight-decisions decision.features: expected a field that may be there, may now be gone",
    ),
    (
        lambda s: s["Decision"]["properties"].update(score={"type": ["string", "null"]}),
        "flight-decisions decision.score: expected number or null, may now be string",
    ),
    (
        lambda s: s["Decision"]["properties"].update(event_id={"type": "number"}),
        "flight-decisions decision.event_id: expected integer, may now be number",
    ),
    (
        lambda s: s["Decision"]["properties"]["model"].update(type=["string", "null"]),
        "flight-decisions decision.model: expected string, may now be null",
    ),
    (
        lambda s: s["Decision"]["required"].remove("score"),
        "flight-decisions decision.score: expected a field that is always there, may now be missing",
    ),
    (
        lambda s: s["Decision"]["properties"]["decision"]["enum"].append("perhaps"),
        "flight-decisions decision.decision: expected 'late' or 'watch' or 'on_time', may now be 'perhaps'",
    ),
    (
        lambda s: s["Decision"]["properties"].update(decision={"type": "string"}),
        "flight-decisions decision.decision: expected 'late' or 'watch' or 'on_time', may now be string",
    ),
    (
        lambda s: s["Decision"]["properties"]["score"].update(maximum=100),
        "flight-decisions decision.score: expected maximum 1, may now be maximum 100",
    ),
    (
        lambda s: s["Decision"]["properties"]["reasons"].pop("minItems"),
        "flight-decisions decision.reasons: expected minItems 1, may now be without minItems",
    ),
    (
        lambda s: s["Decision"]["properties"]["reasons"].update(items={"type": "integer"}),
        "flight-decisions decision.reasons[]: expected string, may now be integer",
    ),
    (
        lambda s: s["Decision"]["properties"]["features"].update(additionalProperties=True),
        "flight-decisions decision.features.*: expected number or string or boolean or null, may now be anything",
    ),
    (
        lambda s: s["Decision"]["properties"]["decision_id"].update(pattern="^fl"),
        "flight-decisions decision.decision_id: expected pattern ^flights/flight-events/[0-9]+/[0-9]+$, may now be pattern ^fl",
    ),
    (
        lambda s: s["Time"].update(format="time"),
        "flight-decisions decision.decided_at: expected format date-time, may now be format time",
    ),
    (
        lambda s: s["Decision"]["properties"].update(schema_version={"const": 2}),
        "flight-decisions decision.schema_version: expected 1, may now be 2",
    ),
    (  # what is read: events as they are written by now
        lambda s: s["Departed"]["required"].append("tailnum"),
        "flight-events departed.tailnum: expected a field that is always there, may now be missing",
    ),
    (
        lambda s: s["Tailnum"].update(type="string"),
        "flight-events arrived.tailnum: expected string, may now be null",
    ),
]


@pytest.mark.parametrize(("change", "said"), BREAKING, ids=[said.partition(",")[0] for _, said in BREAKING])
def test_a_change_that_breaks_is_named(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    assert said in changed(change)


HARMLESS: list[Callable[[dict[str, Any]], Any]] = [
    lambda s: s["Decision"]["properties"].update(why={"type": "string"}),
    lambda s: (s["Decision"]["properties"].update(why={"type": "string"}), s["Decision"]["required"].append("why")),
    lambda s: s["Decision"]["properties"]["score"].update(maximum=0.5, type="number"),
    lambda s: s["Decision"]["properties"]["decision"]["enum"].remove("watch"),
    lambda s: s["Decision"]["properties"]["model"].update(description="another"),
    lambda s: s["Departed"]["required"].remove("dep_delay"),
    lambda s: s["Airport"].update(maxLength=16),
    lambda s: s["Weather"]["properties"].update(gusts={"type": "number"}),
]


@pytest.mark.parametrize("change", HARMLESS)
def test_what_nobody_notices_is_let_through(change: Callable[[dict[str, Any]], Any]) -> None:
    assert changed(change) == []


def test_topics_and_messages_that_go_or_come() -> None:
    new = copy.deepcopy(NOW)
    new["channels"]["flight-decisions"]["address"] = "decisions"
    messages = new["channels"]["flight-drift"]["messages"]
    messages["score"] = messages["driftReport"]
    del new["channels"]["flight-events"]["messages"]["weather"]
    assert [str(each) for each in breaks(NOW, new)] == [
        "flight-decisions: expected a topic that is written, may now be gone",
        "flight-drift score: expected one of driftReport, may now be a message of another kind",
        "flight-events weather: expected a message of this name, may now be gone",
    ]
    assert breaks(new, new) == []


def test_the_key_is_part_of_it() -> None:
    new = copy.deepcopy(NOW)
    new["components"]["messageBindings"]["ByFeature"]["key"]["type"] = ["string", "integer", "null"]
    assert [str(each) for each in breaks(NOW, new)] == [
        "flight-drift driftReport (key): expected string or null, may now be integer"
    ]


def test_what_cannot_be_compared_is_said() -> None:
    new = copy.deepcopy(NOW)
    new["components"]["schemas"]["Decision"]["oneOf"] = []
    with pytest.raises(NoContractError, match="oneOf in a schema: not compared"):
        breaks(NOW, new)
    new = copy.deepcopy(NOW)
    new["components"]["schemas"].pop("Airport")
    with pytest.raises(NoContractError, match=r"\$ref #/components/schemas/Airport: expected it to lead into the document"):
        breaks(NOW, new)


def test_the_command_says_what_breaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = str(HERE.parent / "docs" / "asyncapi.yaml"), tmp_path / "new.yaml"
    document = copy.deepcopy(NOW)
    document["components"]["schemas"]["Decision"]["required"].remove("flags")
    new.write_text(yaml.safe_dump(document))
    assert run_command(["contract", old, old]) == 0
    assert capsys.readouterr().out == "nothing breaks\n"
    assert run_command(["contract", old, str(new)]) == 1
    said = "flight-decisions decision.flags: expected a field that is always there, may now be missing\n"
    assert capsys.readouterr().out == said
    assert run_command(["contract", old, str(new), "--json"]) == 1
    [told] = json.loads(capsys.readouterr().out)
    assert told == {"path": "flight-decisions decision.flags", "expected": "a field that is always there", "got": "missing"}
    new.write_text("asyncapi: 2.6.0")
    assert run_command(["contract", old, str(new)]) == 1
    assert "expected an AsyncAPI 3 document, found no asyncapi: 3.x" in capsys.readouterr().err
