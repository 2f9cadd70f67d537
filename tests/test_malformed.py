"""The malformed messages are what they say they are, the same each time, and cover the ten codes."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from features.schema import Integer, Kind, Number, Schema, Text, Time
from ops.malformed import malformed
from streams.decode import json_decoder

CODES = (
    "bad_utf8",
    "missing_field",
    "not_json",
    "not_object",
    "null_value",
    "out_of_range",
    "time_out_of_range",
    "too_large",
    "unknown_kind",
    "wrong_type",
)
Ride = Schema(
    "Ride",
    version=1,
    fields={
        "kind": Kind(("ordered", "ended", "zone")),
        "at": Time(after="2020-01-01", before="2021-01-01"),
        "ride": Integer(low=0, on=("ordered", "ended")),
        "city": Text(max_bytes=12),
        "fare": Number(low=0, high=1e4, on=("ended",)),
        "tip": Number(on=("ended",), optional=True),
    },
)


def sample() -> list[bytes]:
    rng = np.random.default_rng(5)
    events = []
    for k in range(40):
        event = {"kind": Ride.kinds[k % 3], "at": f"2020-03-{k % 28 + 1:02}T10:00:00Z", "city": ["Łódź", "Rome"][k % 2]}
        ended = {"ride": k, "fare": float(rng.integers(4, 90)) / 2} if k % 3 == 1 else {"ride": k} if k % 3 == 0 else {}
        events.append(json.dumps(event | ended, ensure_ascii=k % 4 == 0).encode())
    return events


def raw(values: list[bytes]) -> pa.RecordBatch:
    n = len(values)
    numbers = {name: pa.array(range(n), pa.int64()) for name in ("_offset", "_appended_at", "_polled_at")}
    keys = pa.array([b"k"] * n, pa.binary())
    return pa.record_batch(
        {"_key": keys, "_value": pa.array(values, pa.binary()), "_partition": pa.array([0] * n, pa.int32()), **numbers}
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_hundred_of_ten_codes_decode_to_their_own(seed: int) -> None:
    assert json_decoder(Ride)(raw(sample())).rows.num_rows == 40
    made = malformed(Ride, sample(), seed=seed)
    decoded = json_decoder(Ride)(raw([message for _, message in made]))
    assert decoded.rows.num_rows == 0
    assert decoded.dead["code"].to_pylist() == [code for code, _ in made]
    assert Counter(code for code, _ in made) == dict.fromkeys(CODES, 10)
    assert len({message for _, message in made}) == 100


def test_the_too_large_are_10_mb_and_a_byte_too_many() -> None:
    sizes = sorted(len(message) for code, message in malformed(Ride, sample()) if code == "too_large")
    assert (sizes[0], sizes[-1]) == (1_000_001, 10_000_000)


def test_the_same_each_time() -> None:
    assert malformed(Ride, sample()) == malformed(Ride, sample())


def test_without_a_sample_or_a_kind_there_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="at least one valid message, got none"):
        malformed(Ride, [])
    plain = Schema("Plain", 1, {"at": Time(), "n": Number()})
    with pytest.raises(ValueError, match="expected a schema with a Kind and a Time, got Plain"):
        malformed(plain, [b'{"at":"2020-01-01T00:00:00Z","n":1}'])
