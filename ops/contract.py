"""What a change of an AsyncAPI document breaks: for those who read what is sent, and for those who send what is read.

What may be written from now on must be within what was promised. A new field is no break: readers pass over those they do not
know (docs/consumers.md). Schemas are compared keyword by keyword, so a change that a person sees to be harmless (a pattern
written in another way) is called a break, never the other way round.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {  # whether what is written keeps to what is expected
    "minimum": lambda written, expected: written >= expected,
    "maximum": lambda written, expected: written <= expected,
    "minLength": lambda written, expected: written >= expected,
    "maxLength": lambda written, expected: written <= expected,
    "minItems": lambda written, expected: written >= expected,
    "maxItems": lambda written, expected: written <= expected,
    "uniqueItems": lambda written, expected: written or not expected,
    "pattern": lambda written, expected: written == expected,
    "format": lambda written, expected: written == expected,
    "contentEncoding": lambda written, expected: written == expected,
}
COMPARED = {*BOUNDS, "type", "enum", "const", "required", "properties", "items", "additionalProperties"}
SAID = {"description", "title", "examples", "default", "deprecated", "$comment"}
TYPES = {bool: "boolean", str: "string", int: "integer", float: "number", type(None): "null", list: "array", dict: "object"}


class NoContractError(ValueError):
    """A file is no AsyncAPI document that can be compared; the message says where and why."""


@dataclass(frozen=True)
class Break:
    """path: topic, message and field; expected: what one side relies on; got: what the other may write."""

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, may now be {self.got}"


def load(path: Path) -> Schema:
    """The document in a file. Raises NoContractError."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NoContractError(f"{path}: expected an AsyncAPI 3 document in YAML or JSON: {error}") from None
    if not isinstance(document, dict) or not str(document.get("asyncapi", "")).startswith("3."):
        raise NoContractError(f"{path}: expected an AsyncAPI 3 document, found no asyncapi: 3.x")
    return document


def breaks(old: Schema, new: Schema) -> list[Break]:
    """What of `old` no longer holds in `new`: for readers of what is sent, and for producers of what is received.

    Raises NoContractError.
    """
    before, after = _channels(old), _channels(new)
    found: list[Break] = []
    for (action, address), promised in before.items():
        now = after.get((action, address))
        if now is None:
            found.append(Break(address, f"a topic that is {'written' if action == 'send' else 'read'}", "gone"))
            continue
        for name in promised.keys() | now.keys():
            path = f"{address} {name}"
            if name not in now:
                found.append(Break(path, "a message of this name", "gone"))
            elif name not in promised:
                if action == "send":
                    found.append(Break(path, f"one of {', '.join(sorted(promised))}", "a message of another kind"))
            else:
                for part in ("payload", "key"):
                    ours, theirs = promised[name][part], now[name][part]
                    written, expected = (theirs, ours) if action == "send" else (ours, theirs)
                    place = path if part == "payload" else f"{path} (key)"
                    found += _outside(written, expected, place, keep=action == "send")
    return sorted(found, key=str)


def _channels(document: Schema) -> dict[tuple[str, str], dict[str, dict[str, Schema]]]:
    """By action and address: the schemas of payload and key of each message, by the message's name."""
    found: dict[tuple[str, str], dict[str, dict[str, Schema]]] = {}
    for operation in document.get("operations", {}).values():
        channel = _resolved(document, operation["channel"])
        messages = {}
        for name, reference in channel.get("messages", {}).items():
            message = _resolved(document, reference)
            kafka = _resolved(document, _resolved(document, message.get("bindings", {})).get("kafka", {}))
            messages[name] = {
                "payload": _flat(document, message.get("payload", {})),
                "key": _flat(document, kafka.get("key", {})),
            }
        found[operation["action"], channel["address"]] = messages
    return found


def _resolved(document: Schema, node: Schema) -> Schema:
    """What a reference within the document leads to."""
    while "$ref" in node:
        reference = node["$ref"]
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            if not reference.startswith("#/") or not isinstance(found, dict) or part not in found:
                raise NoContractError(f"$ref {reference}: expected it to lead into the document")
            found = found[part]
        node = found
    return node


def _flat(document: Schema, node: Schema) -> Schema:
    """A schema without references. Raises NoContractError at a keyword that is not compared: it might hide a break."""
    node = _resolved(document, node)
    unknown = node.keys() - COMPARED - SAID
    if unknown:
        raise NoContractError(f"{', '.join(sorted(unknown))} in a schema: not compared; expected {', '.join(sorted(COMPARED))}")
    flat = {name: value for name, value in node.items() if name in COMPARED}
    if "properties" in flat:
        flat["properties"] = {name: _flat(document, value) for name, value in flat["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(flat.get(name), dict):
            flat[name] = _flat(document, flat[name])
    return flat


def _outside(written: Schema, expected: Schema, path: str, keep: bool) -> Iterator[Break]:
    """Where what may be written is not within what is expected. keep: a field that may be there may not go for ever."""
    yield from _types_outside(written, expected, path)
    for name, within in BOUNDS.items():
        if name in expected and name not in written:
            yield Break(path, f"{name} {expected[name]}", f"without {name}")
        elif name in expected and not within(written[name], expected[name]):
            yield Break(path, f"{name} {expected[name]}", f"{name} {written[name]}")
    fields, others = written.get("properties", {}), written.get("additionalProperties", {})
    for name, schema in expected.get("properties", {}).items():
        required = name in expected.get("required", ())
        if name not in fields:
            if required or keep:
                yield Break(f"{path}.{name}", f"a field that {'is always' if required else 'may be'} there", "gone")
            continue
        if required and name not in written.get("required", ()):
            yield Break(f"{path}.{name}", "a field that is always there", "missing")
        yield from _outside(fields[name], schema, f"{path}.{name}", keep)
    if "items" in expected:
        yield from _outside(written.get("items", {}), expected["items"], f"{path}[]", keep)
    match expected.get("additionalProperties", True):
        case False:
            for name in fields.keys() - expected.get("properties", {}).keys():
                yield Break(f"{path}.{name}", "no field of this name", "there")
        case dict(schema):
            yield from _outside(others if isinstance(others, dict) else {}, schema, f"{path}.*", keep)


def _types_outside(written: Schema, expected: Schema, path: str) -> Iterator[Break]:
    values, known = _values(written), _values(expected)
    if known is not None:
        listed = " or ".join(map(repr, known))
        if values is None:
            yield Break(path, listed, _named(_types(written)))
        elif more := [each for each in values if each not in known]:
            yield Break(path, listed, " or ".join(map(repr, more)))
        return
    wanted, got = _types(expected), _types(written)
    if wanted is None:
        return
    allowed = {*wanted, "integer"} if "number" in wanted else {*wanted}
    if got is None or not allowed.issuperset(got):
        yield Break(path, _named(wanted), _named(got and [each for each in got if each not in allowed]))


def _values(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _types(schema: Schema) -> list[str] | None:
    """The JSON types that a value may have; None: any."""
    if (values := _values(schema)) is not None:
        return sorted({TYPES[type(value)] for value in values})
    told = schema.get("type")
    return [told] if isinstance(told, str) else told


def _named(types: list[str] | None) -> str:
    return "anything" if types is None else " or ".join(types)
