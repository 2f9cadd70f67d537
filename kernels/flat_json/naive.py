"""One message at a time with orjson: the definition, and the parser of everything the kernel does not take."""

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from kernels.flat_json import Field
from kernels.float_list import naive as float_list

Value = str | float | int | list[float] | None
EXPECTED = {"text": "string", "number": "float", "integer": "integer", "time": "time", "kind": "kind"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?(?:[Zz]|[+-]00:00)")
SHOWN = 80


class Fault(NamedTuple):
    """Why a message is refused: a code to count by, what was expected, what was found, and where."""

    code: str
    expected: str
    got: str
    path: str


class RefusedError(ValueError):
    """A value that a field cannot take: the code, what was expected, what was found, and in which of the field's items."""


def parse(message: bytes | None, fields: Sequence[Field], max_bytes: int) -> list[Value] | Fault:
    """The fields' values in their order (a kind as its place, a time in microseconds, None where null), or the first fault.

    Size is looked at first, then UTF-8, JSON, the kind, and the other fields in order. Fields that are not listed, or not
    of the message's kind, are ignored; of equal names the last one counts.
    """
    if message is None:
        return Fault("not_json", "JSON", "no value", "$")
    if len(message) > max_bytes:
        return Fault("too_large", f"at most {max_bytes} bytes", f"{len(message)} bytes", "$")
    try:
        text = message.decode()
    except UnicodeDecodeError as error:
        return Fault("bad_utf8", "UTF-8", f"byte 0x{message[error.start]:02x}", f"byte {error.start}")
    try:
        found = orjson.loads(message)
    except orjson.JSONDecodeError as error:
        found = _with_huge_numbers(text)
        if found is None:
            start = min(error.pos, len(text))
            return Fault(
                "not_json", "JSON", _show(text[start : start + SHOWN]) if text[start:] else "the end", f"character {start}"
            )
    if not isinstance(found, dict):
        return Fault("not_object", "object", _show(found), "$")
    return _row(found, fields)


def _row(found: dict[str, Any], fields: Sequence[Field]) -> list[Value] | Fault:
    kind = next((field for field in fields if field.type == "kind"), None)
    code = 0
    row: list[Value] = []
    try:
        if kind:
            at = kind
            code = _place(found, kind)
        for at in fields:
            if at is kind:
                row.append(code)
            else:
                row.append(_value(found, at) if not at.on or code in at.on else None)
    except RefusedError as refused:
        fault, expected, got, *item = refused.args
        return Fault(fault, expected, got, f"$.{at.name}" + "".join(f"[{place}]" for place in item))
    return row


def _value(found: dict[str, Any], field: Field) -> Value:
    value = found.get(field.name)
    if value is None:
        if field.optional:
            return None
        missing = field.name not in found
        expected = EXPECTED.get(field.type) or _numbers(field.width)
        raise RefusedError("missing_field" if missing else "null_value", expected, "nothing" if missing else "null")
    if field.type == "number":
        return _number(value, field)
    if field.type == "integer":
        return _integer(value, field)
    if field.type == "vector":
        return _vector(value, field)
    if not isinstance(value, str):
        raise RefusedError("wrong_type", EXPECTED[field.type], _show(value))
    if field.type == "time":
        return _time(value, field)
    if field.type == "kind":
        return value
    size = len(value.encode())
    if size > field.high:
        raise RefusedError("out_of_range", f"at most {field.high} bytes", f"{size} bytes: {_show(value, SHOWN - 20)}")
    return value


def _place(found: dict[str, Any], kind: Field) -> int:
    value = _value(found, kind)
    assert isinstance(value, str)
    if value not in kind.values:
        raise RefusedError("unknown_kind", _cut(f"one of {', '.join(kind.values)}"), _show(value))
    return kind.values.index(value)


def _number(value: object, field: Field) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError("wrong_type", "float", _show(value))
    number = float(value)
    if not field.low <= number <= field.high or math.isinf(number):
        raise RefusedError("out_of_range", f"float in [{field.low}, {field.high}]", _show(value))
    return number


def _vector(value: object, field: Field) -> list[float]:
    if not isinstance(value, str if field.as_text else list):
        text = " as text, between commas" if field.as_text else ""
        raise RefusedError("wrong_type", _numbers(field.width) + text, _show(value))
    items: list[Any] = float_list.parts(value) if isinstance(value, str) else value
    if len(items) != field.width:
        raise RefusedError("wrong_type", _numbers(field.width), _numbers(len(items)))
    numbers = []
    for place, item in enumerate(items):
        number = float_list.number(item) if field.as_text else item
        if number is None or isinstance(number, bool) or not isinstance(number, int | float):
            raise RefusedError("wrong_type", "float", _show(item), place)
        numbers.append(float(number))
    values = float_list.rounded(numbers, field.low, field.high)
    if isinstance(values, int):
        raise RefusedError("out_of_range", f"float in [{field.low}, {field.high}]", _show(items[values]), values)
    return values


def _numbers(count: int) -> str:
    return f"{count} number" if count == 1 else f"{count} numbers"


def _integer(value: object, field: Field) -> int:
    huge = isinstance(value, float) and abs(value) >= 2**63  # orjson reads whole numbers beyond 64 bits as floats
    if isinstance(value, bool) or not (huge or isinstance(value, int)):
        raise RefusedError("wrong_type", "integer", _show(value))
    assert isinstance(value, int | float)
    low, high = max(field.low, -(2**63)), min(field.high, 2**63 - 1)
    if huge or not low <= value <= high:
        raise RefusedError("out_of_range", f"integer in [{field.low}, {field.high}]", _show(value))
    return int(value)


def _time(value: str, field: Field) -> int:
    match = TIME.fullmatch(value)
    try:
        when = datetime.fromisoformat(f"{match[1]}T{match[2]}+00:00") if match else None
    except ValueError:
        when = None
    if match is None or when is None:
        raise RefusedError("wrong_type", "time as YYYY-MM-DDTHH:MM:SS[.ffffff]Z", _show(value))
    micros = (when - EPOCH) // timedelta(microseconds=1) + int(f"{match[3] or '':0<6.6}")
    if not field.low <= micros < field.high:
        raise RefusedError("time_out_of_range", f"time in [{_iso(field.low)}, {_iso(field.high)})", _show(value))
    return micros


def _iso(micros: float) -> str:
    return (EPOCH + timedelta(microseconds=int(micros))).isoformat().replace("+00:00", "Z")


def _with_huge_numbers(text: str) -> Any:
    """The JSON text with infinity for numbers beyond float64, which orjson refuses; None if they are not its only fault."""
    huge = False

    def number(digits: str) -> float:
        nonlocal huge
        value = float(digits)
        huge = huge or math.isinf(value)
        return value

    def whole(digits: str) -> float:
        return int(digits) if len(digits) <= 20 and -(2**63) <= int(digits) < 2**64 else number(digits)

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    try:
        found = json.loads(text, parse_float=number, parse_int=whole, parse_constant=constant)
        json.dumps(found, ensure_ascii=False).encode()  # refuses lone surrogates, as orjson does
    except (ValueError, RecursionError):
        return None
    return found if huge else None


def _show(value: object, most: int = SHOWN) -> str:
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"an array of {len(value)} items"
    if isinstance(value, float) and math.isinf(value):
        return "a number beyond float64"
    return _cut(orjson.dumps(value[:most] if isinstance(value, str) else value).decode(), most)


def _cut(text: str, most: int = SHOWN) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
