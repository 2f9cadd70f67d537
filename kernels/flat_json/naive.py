"""One message at a time with orjson: the definition, and the parser of everything the kernel does not take."""

import json
import math
import re
from collections.abc import Callable, Sequence
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
                "not_json", "JSON", show(text[start : start + SHOWN]) if text[start:] else "the end", f"character {start}"
            )
    if not isinstance(found, dict):
        return Fault("not_object", "object", show(found), "$")
    return row_of(found, fields)


def row_of(
    found: dict[str, Any], fields: Sequence[Field], read: Callable[[Any, Field], Value] | None = None
) -> list[Value] | Fault:
    """The fields' values in an object of objects, or the first fault. read: what makes a field's value of what was found;
    raises RefusedError; that of JSON, if none is given."""
    read = read or value_of
    kind = next((field for field in fields if field.type == "kind"), None)
    code = 0
    row: list[Value] = []
    try:
        if kind:
            at = kind
            code = _place(_taken(found, kind, read), kind)
        for at in fields:
            if at is kind:
                row.append(code)
            else:
                row.append(_taken(found, at, read) if not at.on or code in at.on else None)
    except RefusedError as refused:
        fault, expected, got, *item = refused.args
        return Fault(fault, expected, got, f"$.{'.'.join(at.steps)}" + "".join(f"[{place}]" for place in item))
    return row


def _taken(found: Any, field: Field, read: Callable[[Any, Field], Value]) -> Value:
    missing = False
    for name in field.steps:
        if found is None:
            break
        if not isinstance(found, dict):
            raise RefusedError("wrong_type", f"an object with a field {name}", show(found))
        missing = name not in found
        found = found.get(name)
    if found is not None:
        return read(found, field)
    if field.optional:
        return None
    expected = EXPECTED.get(field.type) or _numbers(field.width)
    raise RefusedError("missing_field" if missing else "null_value", expected, "nothing" if missing else "null")


def value_of(value: Any, field: Field) -> Value:
    """A field's value of what JSON has there. Raises RefusedError."""
    if field.type == "number":
        return number_of(value, field)
    if field.type == "integer":
        return _integer(value, field)
    if field.type == "vector":
        return _vector(value, field)
    if not isinstance(value, str):
        raise RefusedError("wrong_type", EXPECTED[field.type], show(value))
    if field.type == "time":
        return _time(value, field)
    if field.type == "kind":
        return value
    size = len(value.encode())
    if size > field.high:
        raise RefusedError("out_of_range", f"at most {field.high} bytes", f"{size} bytes: {show(value, SHOWN - 20)}")
    return value


def _place(value: Value, kind: Field) -> int:
    assert isinstance(value, str)
    if value not in kind.values:
        raise RefusedError("unknown_kind", _cut(f"one of {', '.join(kind.values)}"), show(value))
    return kind.values.index(value)


def number_of(value: object, field: Field) -> float:
    """A number as float64. Raises RefusedError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError("wrong_type", "float", show(value))
    number = float(value)
    if not field.low <= number <= field.high or math.isinf(number):
        raise RefusedError("out_of_range", f"float in [{field.low}, {field.high}]", show(value))
    return number


def _vector(value: object, field: Field) -> list[float]:
    if not isinstance(value, str if field.as_text else list):
        text = " as text, between commas" if field.as_text else ""
        raise RefusedError("wrong_type", _numbers(field.width) + text, show(value))
    items: list[Any] = float_list.parts(value) if isinstance(value, str) else value
    if len(items) != field.width:
        raise RefusedError("wrong_type", _numbers(field.width), _numbers(len(items)))
    numbers = []
    for place, item in enumerate(items):
        number = float_list.number(item) if field.as_text else item
        if number is None or isinstance(number, bool) or not isinstance(number, int | float):
            raise RefusedError("wrong_type", "float", show(item), place)
        numbers.append(float(number))
    values = float_list.rounded(numbers, field.low, field.high)
    if isinstance(values, int):
        raise RefusedError("out_of_range", f"float in [{field.low}, {field.high}]", show(items[values]), values)
    return values


def _numbers(count: int) -> str:
    return f"{count} number" if count == 1 else f"{count} numbers"


def _integer(value: object, field: Field) -> int:
    huge = isinstance(value, float) and abs(value) >= 2**63  # orjson reads whole numbers beyond 64 bits as floats
    if isinstance(value, bool) or not (huge or isinstance(value, int)):
        raise RefusedError("wrong_type", "integer", show(value))
    assert isinstance(value, int | float)
    low, high = max(field.low, -(2**63)), min(field.high, 2**63 - 1)
    if huge or not low <= value <= high:
        raise RefusedError("out_of_range", f"integer in [{field.low}, {field.high}]", show(value))
    return int(value)


def _time(value: str, field: Field) -> int:
    match = TIME.fullmatch(value)
    try:
        when = datetime.fromisoformat(f"{match[1]}T{match[2]}+00:00") if match else None
    except ValueError:
        when = None
    if match is None or when is None:
        raise RefusedError("wrong_type", "time as YYYY-MM-DDTHH:MM:SS[.ffffff]Z", show(value))
    micros = (when - EPOCH) // timedelta(microseconds=1) + int(f"{match[3] or '':0<6.6}")
    return within(micros, field, show(value))


def within(micros: int, field: Field, got: str) -> int:
    """The time, which is shown as `got`. Raises RefusedError if it is not in the field's bounds."""
    if not field.low <= micros < field.high:
        raise RefusedError("time_out_of_range", f"time in [{iso(field.low)}, {iso(field.high)})", got)
    return micros


def iso(micros: float) -> str:
    """A time in microseconds, UTC, as text."""
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


def show(value: object, most: int = SHOWN) -> str:
    """What was found, in at most so many characters."""
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"an array of {len(value)} items"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "a number beyond float64"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, tuple):  # a time or decimal of Avro, which says itself how it is shown
        return _cut(str(value), most)
    return _cut(orjson.dumps(value[:most] if isinstance(value, str) else value).decode(), most)


def _cut(text: str, most: int = SHOWN) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
