"""Encoders: what is read back from the JSON is what was in the columns, whatever the batch looks like."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.memory import MemorySink
from sinks.messages import DeliveryError, Encoder, Messages, encode_dead, encode_decisions, encode_drift

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UTC_US = pa.timestamp("us", "UTC")
COLUMNS: dict[str, pa.DataType] = {
    "_key": pa.binary(),
    "decision_id": pa.string(),
    "event_id": pa.int64(),
    "decision": pa.dictionary(pa.int8(), pa.string()),
    "score": pa.float32(),
    "reasons": pa.list_(pa.string()),
    "model": pa.dictionary(pa.int8(), pa.string()),
    "model_version": pa.int32(),
    "flags": pa.list_(pa.string()),
    "event_time": UTC_US,
    "decided_at": UTC_US,
    "schema_version": pa.int32(),
}


def batch_of(rows: list[dict[str, Any]], **types: pa.DataType) -> pa.RecordBatch:
    types = COLUMNS | types
    return pa.RecordBatch.from_arrays([pa.array([row[name] for row in rows], types[name]) for name in types], list(types))


def row(k: int, **values: Any) -> dict[str, Any]:
    return {
        "_key": f"N{k % 7}".encode() if k % 5 else None,
        "decision_id": f"flights/flight-events/0/{k}",
        "event_id": k,
        "decision": ("late", "watch", "on_time")[k % 3],
        "score": np.float32(k / 7),
        "reasons": ["storm", "score>=0.5"][: 1 + k % 2],
        "model": "flights",
        "model_version": 3,
        "flags": ["missing:plane_history", "fallback"][: k % 3],
        "event_time": EPOCH + timedelta(days=k, microseconds=k % 2),
        "decided_at": EPOCH + timedelta(days=17_000),
        "schema_version": 1,
    } | values


def read_back(messages: Messages, **types: pa.DataType) -> list[dict[str, Any]]:
    """The rows again, keys included."""
    rows = []
    for key, value in zip(messages.keys, messages.values, strict=True):
        found = json.loads(value)
        for name in ("event_time", "decided_at"):
            assert found[name].endswith("Z")
            found[name] = datetime.fromisoformat(found[name])
        found["score"] = None if found["score"] is None else np.float32(found["score"])
        rows.append({"_key": key, **found})
    return rows


@pytest.mark.parametrize("n", [0, 1, 2, 3, 100])
def test_decisions_read_back_as_they_were(n: int) -> None:
    rows = [row(k) for k in range(n)]
    messages = encode_decisions(batch_of(rows), "flight-decisions")
    assert messages.topic == "flight-decisions"
    assert read_back(messages) == rows
    if n:
        assert list(json.loads(messages.values[0])) == [name for name in COLUMNS if name != "_key"]


@pytest.mark.parametrize(("start", "length"), [(0, 4), (3, 1), (5, 40), (97, 3), (50, 0)])
def test_a_slice_is_encoded_as_its_rows_alone(start: int, length: int) -> None:
    rows = [row(k) for k in range(100)]
    whole = encode_decisions(batch_of(rows), "t")
    part = encode_decisions(batch_of(rows).slice(start, length), "t")
    assert (part.keys, part.values) == (whole.keys[start : start + length], whole.values[start : start + length])


texts = st.text(st.characters(codec="utf-8"), max_size=6)
times = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999)).map(lambda t: t.replace(tzinfo=UTC))
generated = st.builds(
    lambda **values: row(1) | values,
    _key=st.none() | st.binary(max_size=4),
    decision_id=texts,
    event_id=texts,
    decision=texts,
    score=st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32),
    reasons=st.lists(texts, max_size=3),
    flags=st.lists(st.sampled_from(["fallback", 'a"b', "", "ü\\n"]), max_size=2),
    event_time=times,
    decided_at=times,
    model_version=st.integers(-(2**31), 2**31 - 1),
)


@given(st.lists(generated, max_size=5))
def test_any_text_number_and_time_reads_back(rows: list[dict[str, Any]]) -> None:
    """Quotes, backslashes, control characters and foreign letters; every float32 to the bit; every microsecond."""
    assert read_back(encode_decisions(batch_of(rows, event_id=pa.string()), "t")) == rows


def test_scores_keep_every_bit_of_float32() -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    scores = np.concatenate([bits[np.isfinite(bits)], np.random.default_rng(2).random(20_000, np.float32)])
    batch = batch_of([row(0)] * len(scores))
    batch = batch.set_column(batch.schema.get_field_index("score"), "score", pa.array(scores))
    found = [json.loads(value)["score"] for value in encode_decisions(batch, "t").values]
    np.testing.assert_array_equal(np.array(found, np.float32), scores)


WHOLE = st.integers(-(2**24), 2**24).map(float)
MISSING = st.just(float("nan"))


@given(st.lists(st.lists(WHOLE | MISSING, min_size=1, max_size=5) | st.lists(st.floats(), min_size=1, max_size=5), max_size=5))
def test_a_float64_keeps_every_bit_and_writes_the_same_whatever_came_before(batches: list[list[float]]) -> None:
    """Whole numbers, too, which are written another way as long as there have been no others."""
    encoder = Encoder()
    for values in batches:
        written = encoder.objects([("x", np.array(values))], len(values))
        alone = [Encoder().objects([("x", pa.array([value], pa.float64()))], 1)[0] for value in values]
        assert [each.replace(b"-0}", b"0}") for each in written] == [each.replace(b"-0}", b"0}") for each in alone]
        for value, text in zip(values, written, strict=True):
            assert json.loads(text)["x"] == (value if np.isfinite(value) else None)


@pytest.mark.parametrize("kind", ["i1", "u1", "i4", "i8"])
def test_integers_of_any_width_are_written(kind: str) -> None:
    values = np.array([0, 7, np.iinfo(kind).max, np.iinfo(kind).min], kind)
    assert Encoder().objects([("x", values)], 4) == [b'{"x":%d}' % value for value in values.tolist()]


def test_no_score_is_null_however_it_is_missing() -> None:
    rows = [row(k, score=score) for k, score in enumerate([None, np.nan, np.inf, -np.inf, 0.5])]
    found = [decision["score"] for decision in read_back(encode_decisions(batch_of(rows), "t"))]
    assert found == [None, None, None, None, 0.5]
    assert [d["score"] for d in read_back(encode_decisions(batch_of(rows[1:2]), "t"))] == [None]


def test_nulls_are_null_and_null_lists_are_empty() -> None:
    rows = [row(1, event_id=None, decision=None, event_time=None, reasons=None), row(2)]
    batch = batch_of(rows)
    found = [json.loads(value) for value in encode_decisions(batch, "t").values]
    assert encode_decisions(batch.slice(0, 1), "t").values == encode_decisions(batch, "t").values[:1]
    nulls = [found[0][name] for name in ("event_id", "decision", "event_time", "reasons")]
    assert nulls == [None, None, None, []]
    assert found[1]["event_time"] == "1970-01-03T00:00:00.000000Z"


def test_features_are_an_object_in_the_order_asked_for() -> None:
    rows = [row(k, carrier="UA" if k else None, delay=np.nan if k == 1 else k / 2) for k in range(3)]
    types = {"carrier": pa.string(), "delay": pa.float64()}
    found = [
        json.loads(value)["features"] for value in encode_decisions(batch_of(rows, **types), "t", ("delay", "carrier")).values
    ]
    assert found == [{"delay": 0.0, "carrier": None}, {"delay": None, "carrier": "UA"}, {"delay": 1.0, "carrier": "UA"}]
    assert list(found[0]) == ["delay", "carrier"]
    assert "features" not in json.loads(encode_decisions(batch_of(rows, **types), "t").values[0])


def test_a_time_that_json_cannot_hold_is_refused_by_name() -> None:
    batch = batch_of([row(1), row(2)])
    far = pa.array([0, 300_000_000_000_000_000], pa.int64()).cast(UTC_US)
    for late in (far, far.take(pa.array([1, 1]))):
        with pytest.raises(ValueError, match=r"years 1 to 9999.* at event_time"):
            encode_decisions(batch.set_column(9, "event_time", late), "t")
    coarse = pa.array([0, 1], pa.int64()).cast(pa.timestamp("s", "UTC"))
    with pytest.raises(TypeError, match=r"expected times in microseconds, got timestamp\[s.* at event_time"):
        encode_decisions(batch.set_column(9, "event_time", coarse), "t")


def test_a_column_of_another_type_is_refused_by_name() -> None:
    batch = batch_of([row(1)])
    with pytest.raises(TypeError, match="got binary at decision_id"):
        encode_decisions(batch.set_column(1, "decision_id", pa.array([b"x"])), "t")


def dead_batch(values: list[bytes | None], keep: int, keys: list[bytes | None]) -> pa.RecordBatch:
    n = len(values)
    return pa.RecordBatch.from_pydict(
        {
            "code": pa.array(["not_json"] * n, pa.string()),
            "reason": pa.array([f'expected float, got "n/a" at $.x ({k})' for k in range(n)], pa.string()),
            "_key": pa.array(keys, pa.binary()),
            "value": pa.array([value and value[:keep] for value in values], pa.binary()),
            "size": pa.array([len(value or b"") for value in values], pa.int64()),
            "sha256": pa.array([hashlib.sha256(value or b"").hexdigest() for value in values], pa.string()),
            "closed": pa.array([False] * n, pa.bool_()),
            "_partition": pa.array([3] * n, pa.int32()),
            "_offset": pa.array(range(1742, 1742 + n), pa.int64()),
            "_appended_at": pa.array([0] * n, pa.int64()),
        }
    )


def test_dead_letters_hold_bytes_position_and_reason() -> None:
    values = [b"\xff\x00{", b"", None, bytes(range(256)) * 40]
    keys = [b"\xfe", None, b"", b"k"]
    messages = encode_dead(dead_batch(values, 1000, keys), "flight-events.dead", "flight-events")
    assert (messages.topic, messages.keys) == ("flight-events.dead", keys)
    letters = [json.loads(value) for value in messages.values]
    for k, (letter, key, value) in enumerate(zip(letters, keys, values, strict=True)):
        position = letter["topic"], letter["partition"], letter["offset"]
        assert position == ("flight-events", 3, 1742 + k)
        assert letter["reason"] == f'expected float, got "n/a" at $.x ({k})'
        assert letter["key_base64"] == (None if key is None else base64.b64encode(key).decode())
        assert letter["value_base64"] == (None if value is None else base64.b64encode(value[:1000]).decode())
        assert letter["size"] == len(value or b"")
        assert letter["sha256"] == hashlib.sha256(value or b"").hexdigest()
        assert letter["truncated"] is (k == 3)
    assert encode_dead(dead_batch([], 1, []), "d", "t").values == []
    assert encode_dead(dead_batch(values, 1000, keys).slice(2), "d", "flight-events").values == messages.values[2:]


def test_drift_reports_are_keyed_by_feature() -> None:
    day = EPOCH + timedelta(days=15_000)
    columns = {
        "pipeline": ["flights"] * 3,
        "window_start": [day] * 3,
        "window_end": [day + timedelta(days=1)] * 3,
        "feature": ["temp", "score", None],
        "statistic": ["psi", "ks", "rows"],
        "value": [0.1, float("nan"), 12.0],
        "threshold": [0.25, 0.5, 100.0],
        "alarmed": [True, False, False],
        "rows": [900, 900, 12],
    }
    types = [pa.string(), UTC_US, UTC_US, pa.string(), pa.string(), pa.float64(), pa.float64(), pa.bool_(), pa.int64()]
    batch = pa.RecordBatch.from_arrays([pa.array(v, t) for v, t in zip(columns.values(), types, strict=True)], list(columns))
    messages = encode_drift(batch, "flight-drift")
    assert messages.keys == [b"temp", b"score", None]
    found = [json.loads(value) for value in messages.values]
    assert found[0] == {
        "pipeline": "flights",
        "window_start": "2011-01-26T00:00:00.000000Z",
        "window_end": "2011-01-27T00:00:00.000000Z",
        "feature": "temp",
        "statistic": "psi",
        "value": 0.1,
        "threshold": 0.25,
        "alarmed": True,
        "rows": 900,
    }
    assert [(report["feature"], report["value"]) for report in found[1:]] == [("score", None), (None, 12.0)]


def test_the_memory_sink_keeps_messages_by_topic_until_it_is_told_to_fail() -> None:
    sink = MemorySink()
    seen: list[int] = []
    sink.on_write = lambda messages: seen.append(len(messages.values))
    sink.write(Messages("a", [b"k", None], [b"1", b"2"]))
    sink.flush()
    sink.fail_after(messages=1)
    with pytest.raises(DeliveryError, match="got 2 failed on a: told to fail") as failed:
        sink.write(Messages("a", [None] * 3, [b"3", b"4", b"5"]))
    assert (failed.value.topic, failed.value.count, failed.value.reason) == ("a", 2, "told to fail")
    with pytest.raises(DeliveryError):
        sink.write(Messages("b", [None], [b"6"]))
    with pytest.raises(DeliveryError):
        sink.flush()
    sink.fail_after(messages=None)
    sink.write(Messages("b", [None], [b"7"]))
    sink.flush()
    assert (sink.values("a"), sink.keys("a"), sink.values("b")) == ([b"1", b"2", b"3"], [b"k", None, None], [b"7"])
    assert (sink.flushes, seen) == (2, [2, 1])
