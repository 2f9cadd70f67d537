"""Malformed messages of every code, made by damaging real ones: to test pipelines with, and planted in the demo's replay."""

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from features.schema import Field, Integer, Kind, Number, Schema, Text, Time

EACH = 10
TRIES = 1_000
BAD_BYTES = (b"\xff", b"\x80", b"\xc0\xaf", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"caf\xe9", b"\xfe")
WRONG: Mapping[type, tuple[Any, ...]] = {
    Text: (7, True, ["UA"], {"code": "UA"}),
    Number: ("n/a", "12.5", False, [1.0]),
    Integer: ("7", 1.5, True, {}),
    Time: ("yesterday", 1_357_034_400, "2013-13-45T99:99:99Z", "2013-01-01 10:00"),
    Kind: (3, True, ["departed"], 0.5),
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Damage = Callable[[dict[str, Any], int, random.Random], bytes]


def malformed(
    schema: Schema, sample: Sequence[bytes], *, max_bytes: int = 1_000_000, large: int = 10_000_000, seed: int = 0
) -> list[tuple[str, bytes]]:
    """A hundred (code, message) pairs, ten different messages of each code, the codes mixed; the same each time.

    sample: valid messages of the schema. max_bytes: the largest message that the decoder takes; of the too large ones the
    first has `large` bytes, the second one byte too many. Raises ValueError without a sample, or for a schema that cannot be
    broken in all ten ways (it needs a Kind and a Time).
    """
    if not sample:
        raise ValueError("malformed: expected at least one valid message, got none")
    if not schema.kind or not any(isinstance(field, Time) for field in schema.fields.values()):
        raise ValueError(f"malformed: expected a schema with a Kind and a Time, got {schema.name}")
    rng = random.Random(seed)
    made = [
        (code, message)
        for code, damage in _damages(schema, max_bytes, large).items()
        for message in _ten(code, damage, sample, rng)
    ]
    rng.shuffle(made)
    return made


def _damages(schema: Schema, max_bytes: int, large: int) -> dict[str, Damage]:
    def too_large(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
        message = _dump(event | {"note": ""})
        return message[:-2] + b"x" * ((large if i == 0 else max_bytes + i) - len(message)) + message[-2:]

    def missing_field(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
        name = rng.choice(list(_fields(schema, event, required=True)))
        return _dump({key: value for key, value in event.items() if key != name})

    def null_value(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
        return _dump(event | {rng.choice(list(_fields(schema, event, required=True))): None})

    def wrong_type(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
        name, field = rng.choice(list(_fields(schema, event).items()))
        return _dump(event | {name: rng.choice(WRONG[type(field)])})

    def out_of_range(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
        name, literal = rng.choice([(name, t) for name, field in _fields(schema, event).items() for t in _beyond(field)])
        return _dump(event | {name: "@beyond@"}).replace(b'"@beyond@"', literal.encode())

    def unknown_kind(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
        kind = str(event[schema.kind or ""])
        others = (
            kind.upper(),
            kind + "s",
            kind[:-1],
            f" {kind}",
            f"{kind} ",
            kind[::-1],
            kind * 2,
            "",
            "unknown",
            "test",
            "null",
        )
        return _dump(event | {schema.kind: rng.choice([other for other in others if other not in schema.kinds])})

    def time_out_of_range(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
        name = rng.choice([name for name, field in _fields(schema, event).items() if isinstance(field, Time)])
        return _dump(event | {name: rng.choice(_times_beyond(schema.fields[name]))})

    return {
        "not_json": _not_json,
        "bad_utf8": _bad_utf8,
        "not_object": _not_object,
        "missing_field": missing_field,
        "wrong_type": wrong_type,
        "null_value": null_value,
        "out_of_range": out_of_range,
        "too_large": too_large,
        "unknown_kind": unknown_kind,
        "time_out_of_range": time_out_of_range,
    }


def _ten(code: str, damage: Damage, sample: Sequence[bytes], rng: random.Random) -> list[bytes]:
    made: dict[bytes, None] = {}
    for _ in range(TRIES):
        try:
            made[damage(json.loads(rng.choice(sample)), len(made), rng)] = None
        except (KeyError, IndexError, OverflowError) as error:
            raise ValueError(f"malformed: expected a schema and a sample that can be broken as {code}") from error
        if len(made) == EACH:
            return list(made)
    raise ValueError(f"malformed: expected {EACH} different messages of {code}, got {len(made)} in {TRIES} tries")


def _not_json(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
    text = _dump(event).decode()
    rest = text[1:]
    return (
        "",
        text[: len(text) // 2],
        text[:-1],
        text + "}",
        text + "\n" + text,
        text.replace('"', "'"),
        '{"note":NaN,' + rest,
        '{"note":-Infinity,' + rest,
        text[:-1] + ",}",
        '{"note":"\\ud800",' + rest,
    )[i].encode()


def _bad_utf8(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
    message = _dump(event)
    if i < len(BAD_BYTES):
        return b'{"note":"' + BAD_BYTES[i] + b'",' + message[1:]
    return message.decode().encode("utf-16") if i == len(BAD_BYTES) else gzip.compress(message, mtime=0)


def _not_object(event: dict[str, Any], i: int, rng: random.Random) -> bytes:
    text = _dump(event).decode()
    return _dump(([event], text, list(event.values()), [event, event], None, True, 0, -1.5, [], "")[i])


def _fields(schema: Schema, event: Mapping[str, Any], *, required: bool = False) -> dict[str, Field]:
    """The fields of the event's kind."""
    kind = event[schema.kind] if schema.kind else ""
    fields = {name: field for name, field in schema.fields.items() if not field.on or kind in field.on}
    return {name: field for name, field in fields.items() if not (required and field.optional)}


def _beyond(field: Field) -> list[str]:
    """JSON literals that are of the field's type and out of its bounds."""
    match field:
        case Number():
            near = [repr(float(bound + sign * max(1, abs(bound)))) for bound, sign in ((field.low, -1), (field.high, 1))]
            return ["1e400", "-1e400", *(text for text in near if "inf" not in text)]
        case Integer():
            return [str(n) for n in (field.low - 1, field.high + 1, 2**64 + field.high, -(2**70) + field.low)]
        case Text():
            return [f'"{letters * (field.max_bytes + 1)}"' for letters in ("x", "é")]
        case _:
            return []


def _times_beyond(field: Field) -> list[str]:
    """Times out of the field's bounds, some by a microsecond."""
    assert isinstance(field, Time)
    after, before = (EPOCH + timedelta(microseconds=bound) for bound in field.bounds_us)
    lengths = [timedelta(microseconds=1), timedelta(seconds=1), timedelta(days=1), timedelta(days=366), timedelta(days=20_000)]
    times = [after - length for length in lengths] + [before] + [before + length for length in lengths]
    return [time.isoformat().replace("+00:00", "Z") for time in times]


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
