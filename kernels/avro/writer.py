"""A writer's schema, read from its JSON text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")


class SchemaError(ValueError):
    """A text that is no Avro schema; the message says why."""


@dataclass(eq=False)
class Type:
    """A type of a writer's schema; a record may hold itself.

    kind: one of PRIMITIVES or fixed, enum, array, map, union, record. logical: its logicalType, if any; scale: of a decimal.
    size: of a fixed. symbols: of an enum. parts: the items of an array or map, the branches of a union, the fields' types of a
    record, whose names are `names`.
    """

    kind: str
    logical: str = ""
    scale: int = 0
    size: int = 0
    symbols: tuple[str, ...] = ()
    parts: list["Type"] = field(default_factory=list)
    names: tuple[str, ...] = ()


def read_schema(text: str, known: Sequence[str] = ()) -> Type:
    """The schema of the text; `known` are the texts of schemas that it refers to, those that are referred to first.

    Raises SchemaError.
    """
    names: dict[str, Type] = {}
    try:
        for each in known:
            _read(orjson.loads(each), "", names)
        return _read(orjson.loads(text), "", names)
    except orjson.JSONDecodeError as error:
        raise SchemaError(f"expected JSON, got {error}") from error
    except RecursionError as error:
        raise SchemaError("expected types in types to a depth that Python can follow, got more") from error


def _read(told: Any, space: str, names: dict[str, Type]) -> Type:
    if isinstance(told, str):
        return _named(told, space, names)
    if isinstance(told, list):
        branches = [_read(each, space, names) for each in told]
        if not branches or any(branch.kind == "union" for branch in branches):
            raise SchemaError("expected a union of at least one type and of no union, got another")
        return Type("union", parts=branches)
    if not isinstance(told, dict):
        raise SchemaError(f"expected a type, got {_show(told)}")
    kind = told.get("type")
    if kind in ("record", "error", "enum", "fixed"):
        return _definition(told, kind, space, names)
    if kind in ("array", "map"):
        return Type(kind, parts=[_read(_member(told, "items" if kind == "array" else "values"), space, names)])
    if kind in PRIMITIVES:
        logical, scale = _logical(told)
        return Type(kind, logical, scale)
    return _read(_member(told, "type"), space, names)


def _definition(told: Mapping[str, Any], kind: str, space: str, names: dict[str, Type]) -> Type:
    name = _member(told, "name")
    if not isinstance(name, str):
        raise SchemaError(f"expected a name, got {_show(name)}")
    if "." not in name:
        inner = told.get("namespace", space)
        name = f"{inner}.{name}" if inner else name
    if name in names:
        raise SchemaError(f"expected one definition of {name}, got two")
    logical, scale = _logical(told)
    made = names[name] = Type("record" if kind == "error" else kind, logical, scale)
    if kind == "fixed":
        made.size = _member(told, "size")
        if not isinstance(made.size, int) or made.size < 0:
            raise SchemaError(f"{name}: expected a size, got {_show(made.size)}")
    elif kind == "enum":
        made.symbols = _words(_member(told, "symbols"), f"{name}: symbols")
    else:
        fields = _member(told, "fields")
        if not isinstance(fields, list) or not all(isinstance(each, dict) for each in fields):
            raise SchemaError(f"{name}: expected a list of fields, got {_show(fields)}")
        made.names = _words([_member(each, "name") for each in fields], f"{name}: fields")
        made.parts = [_read(_member(each, "type"), name.rpartition(".")[0], names) for each in fields]
    return made


def _named(name: str, space: str, names: Mapping[str, Type]) -> Type:
    if name in PRIMITIVES:
        return Type(name)
    full = name if "." in name or not space else f"{space}.{name}"
    found = names.get(full) or names.get(name)
    if found is None:
        raise SchemaError(f"expected a type that is defined before, got {_show(name)}")
    return found


def _logical(told: Mapping[str, Any]) -> tuple[str, int]:
    logical, scale = told.get("logicalType", ""), told.get("scale", 0)
    if logical == "decimal" and not (isinstance(scale, int) and 0 <= scale <= 10_000):
        return "", 0
    return (logical, scale if logical == "decimal" else 0) if isinstance(logical, str) else ("", 0)


def _member(told: Mapping[str, Any], name: str) -> Any:
    if name not in told:
        raise SchemaError(f"expected {name} in {_show(told)}, got nothing")
    return told[name]


def _words(told: Any, what: str) -> tuple[str, ...]:
    if not isinstance(told, list) or not all(isinstance(each, str) for each in told) or len(set(told)) < len(told):
        raise SchemaError(f"{what}: expected names, none twice, got {_show(told)}")
    return tuple(told)


def _show(told: Any) -> str:
    text = orjson.dumps(told).decode()
    return text if len(text) <= 80 else text[:77] + "..."
