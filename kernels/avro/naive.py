"""One message at a time in Python: the definition, and the parser of everything the kernel does not take."""

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kernels.avro.writer import Type
from kernels.flat_json import Field
from kernels.flat_json.naive import Fault, RefusedError, Value, iso, row_of, show, value_of, within

Find = Callable[[int], Type | Fault]
"""The schema with an id, or why there is none."""
HEAD = 5
MOST_DEPTH = 200
MICROS = {"timestamp-micros": 1, "timestamp-millis": 1_000, "date": 86_400_000_000}
Path = tuple[str, ...]


class Instant(NamedTuple):
    """A time: the writer's number, and microseconds since 1970-01-01 UTC."""

    raw: int
    micros: int

    def __str__(self) -> str:
        return _iso(self)


class Decimal(NamedTuple):
    """unscaled / 10**scale."""

    unscaled: int
    scale: int

    def __str__(self) -> str:
        return str(float(self))

    def __float__(self) -> float:
        try:
            return self.unscaled / 10**self.scale
        except OverflowError:
            return math.inf if self.unscaled > 0 else -math.inf


class MalformedError(ValueError):
    """Bytes that are not what the writer's schema says: the code, what was expected, what was found, and at which byte."""


def parse(message: bytes | None, fields: Sequence[Field], max_bytes: int, find: Find) -> list[Value] | Fault:
    """The fields' values in their order (a kind as its place, a time in microseconds, None where null), or the first fault.

    Size is looked at first, then the head, the schema, the bytes from the first to the last, the kind, and the other fields in
    order. What the writer has and no field asks for is skipped, its text unread; what a field asks for and the writer lacks is
    missing.
    """
    if message is None:
        return Fault("not_avro", "a zero byte and a schema id", "no value", "$")
    if len(message) > max_bytes:
        return Fault("too_large", f"at most {max_bytes} bytes", f"{len(message)} bytes", "$")
    if len(message) < HEAD or message[0]:
        got = f"byte 0x{message[0]:02x}" if message and message[0] else f"{len(message)} bytes"
        return Fault("not_avro", "a zero byte and a schema id", got, "byte 0")
    writer = find(int.from_bytes(message[1:HEAD]))
    if isinstance(writer, Fault):
        return writer
    body = Body(message, frozenset(field.steps for field in fields))
    try:
        found = body.read(writer, ())
        if body.at < len(message):
            raise MalformedError("not_avro", "the end", f"{len(message) - body.at} bytes more", body.at)
    except MalformedError as error:
        code, expected, got, at = error.args
        return Fault(code, expected, got, f"byte {at}")
    if not isinstance(found, dict):
        return Fault("not_object", "record", show(_plain(found)), "$")
    return row_of(found, fields, _value)


class Body:
    """Reads a message from its sixth byte on; `at` is how far it has come."""

    def __init__(self, message: bytes, wanted: frozenset[Path]) -> None:
        self.message, self.at = message, HEAD
        self._wanted = wanted
        self._above = frozenset(path[:k] for path in wanted for k in range(len(path)))

    def read(self, type: Type, path: Path | None, depth: int = 0) -> Any:
        """What stands there: None, bool, int, float, str, bytes, Instant, Decimal, list or dict.

        path: the names that lead to it; None where no field can ask for it, whose value is only skipped. Raises MalformedError.
        """
        if depth > MOST_DEPTH:
            raise MalformedError("not_avro", f"at most {MOST_DEPTH} types in each other", "more", self.at)
        wanted = path in self._wanted
        match type.kind:
            case "null":
                return None
            case "boolean":
                at = self.at
                (byte,) = self._take(1)
                if byte > 1:
                    raise MalformedError("not_avro", "boolean", f"byte 0x{byte:02x}", at)
                return byte == 1
            case "int" | "long":
                return _logical_int(type, self._long(-(2**31), 2**31 - 1) if type.kind == "int" else self._long())
            case "float":
                return struct.unpack("<f", self._take(4))[0]
            case "double":
                return struct.unpack("<d", self._take(8))[0]
            case "string":
                text = self._sized()
                return _text(text, self.at - len(text)) if wanted else text if path in self._above else None
            case "bytes":
                value = self._sized()
                return _decimal(type, value) if wanted or path in self._above else None
            case "fixed":
                value = self._take(type.size)
                return _decimal(type, value) if wanted or path in self._above else None
            case "enum":
                return type.symbols[self._long(0, len(type.symbols) - 1, "a symbol's number")]
            case "union":
                branch = self._long(0, len(type.parts) - 1, "a branch's number")
                return self.read(type.parts[branch], path, depth + 1)
            case "record":
                inside = path is not None and path in self._above
                fields = zip(type.names, type.parts, strict=True)
                return {name: self.read(part, (*(path or ()), name) if inside else None, depth + 1) for name, part in fields}
        return self._blocks(type, path if wanted else None, depth)

    def _blocks(self, type: Type, path: Path | None, depth: int) -> Any:
        """An array or map. What is not wanted is skipped by the size of a block, where the writer tells it."""
        items: list[Any] = []
        item = type.parts[0]
        while count := self._long():
            if count < 0:
                at = self.at
                size = self._long(0)
                if size > len(self.message) - self.at:
                    raise MalformedError("not_avro", f"a block of {size} bytes", "the end", at)
                if path is None:
                    self.at += size
                    continue
                count = -count
            if type.kind == "array" and is_empty(item):
                continue
            for _ in range(count):
                if type.kind == "map":
                    self._sized()
                items.append(self.read(item, path, depth + 1))
        return items

    def _long(self, low: int = -(2**63), high: int = 2**63 - 1, what: str = "number") -> int:
        at, n, shift = self.at, 0, 0
        while True:
            (byte,) = self._take(1)
            n |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 63:
                raise MalformedError("not_avro", "number of at most ten bytes", "more", at)
        value = (n >> 1) ^ -(n & 1)
        if n >= 2**64 or not low <= value <= high:
            raise MalformedError("not_avro", f"{what} in [{low}, {high}]", str(value), at)
        return value

    def _sized(self) -> bytes:
        return self._take(self._long(0, what="length"))

    def _take(self, size: int) -> bytes:
        left = len(self.message) - self.at
        if size > left:
            got = f"{left} bytes" if left else "the end"
            raise MalformedError("not_avro", f"{size} bytes" if size > 1 else "a byte", got, self.at)
        self.at += size
        return self.message[self.at - size : self.at]


def is_empty(type: Type, above: tuple[Type, ...] = ()) -> bool:
    """Whether every value of the type takes no byte at all."""
    if type.kind == "record":
        return type not in above and all(is_empty(part, (*above, type)) for part in type.parts)
    return type.kind == "null" or (type.kind == "fixed" and type.size == 0)


def _value(found: Any, field: Field) -> Value:
    """A field's value of what an Avro message has there. Booleans are 0 and 1; bytes may be text. Raises RefusedError."""
    if isinstance(found, Instant):
        if field.type == "time":
            return within(found.micros, field, _iso(found))
        found = found.raw
    elif isinstance(found, bool):
        found = int(found) if field.type in ("number", "integer") else found
    elif isinstance(found, Decimal):
        if field.type == "number":
            found = float(found)
        else:
            raise RefusedError("wrong_type", field.type, "a decimal")
    elif isinstance(found, bytes) and field.type in ("text", "kind"):
        try:
            found = found.decode()
        except UnicodeDecodeError as error:
            raise RefusedError("bad_utf8", "UTF-8", f"byte 0x{found[error.start]:02x}") from error
    elif isinstance(found, list):
        found = [_plain(item) for item in found]
    return value_of(found, field)


def _plain(found: Any) -> Any:
    return found.raw if isinstance(found, Instant) else float(found) if isinstance(found, Decimal) else found


def _logical_int(type: Type, value: int) -> int | Instant:
    if type.logical == "date" and type.kind == "int":
        return Instant(value, value * MICROS["date"])
    if type.kind == "int" or type.logical not in ("timestamp-millis", "timestamp-micros", "timestamp-nanos"):
        return value
    return Instant(value, value // 1000 if type.logical == "timestamp-nanos" else value * MICROS[type.logical])


def _decimal(type: Type, value: bytes) -> bytes | Decimal:
    return Decimal(int.from_bytes(value, signed=True), type.scale) if type.logical == "decimal" else value


def _text(value: bytes, at: int) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("bad_utf8", "UTF-8", f"byte 0x{value[error.start]:02x}", at + error.start) from error


def _iso(when: Instant) -> str:
    try:
        return iso(when.micros)
    except OverflowError:
        return str(when.raw)
