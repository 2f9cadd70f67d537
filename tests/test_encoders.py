"""Messages in other forms than decisions: ids with scores, and events completed in their own bytes."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.json_member.cpu import with_members
from kernels.json_member.naive import with_member
from sinks.encoders import Echo, Scores

F32 = np.float32


def batch_of(values: list[bytes], ids: list[int] | None = None) -> pa.RecordBatch:
    n = len(values)
    keys = [None if k % 3 == 2 else b"k%d" % k for k in range(n)]
    return pa.record_batch(
        {
            "_key": pa.array(keys, pa.binary()),
            "_value": pa.array(values, pa.binary()),
            "id": pa.array(ids or list(range(n)), pa.int64()),
            "name": pa.array([f'n"{k}' for k in range(n)], pa.string()),
        }
    )


def test_ids_and_scores_are_json_with_the_shortest_numbers_and_the_event_s_key() -> None:
    scores = np.array([0.1, np.nan, -2.5e-9, 1 / 3], F32)
    batch = batch_of([b"{}"] * 4, [7, -1, 2**60, 0])
    messages = Scores()(batch, scores, "out")
    assert (messages.topic, messages.keys) == ("out", batch["_key"].to_pylist())
    assert messages.values[0] == b'{"id":7,"score":0.1}'
    assert messages.values[1] == b'{"id":-1,"score":null}'
    found = [json.loads(value) for value in messages.values]
    assert [one["id"] for one in found] == [7, -1, 2**60, 0]
    assert [F32(one["score"]) for one in found[2:]] == [scores[2], scores[3]]
    assert json.loads(Scores("name")(batch.slice(1, 2), scores[1:3], "out").values[1])["name"] == 'n"2'
    assert Scores()(batch.slice(4), scores[4:], "out").values == []


def test_several_scores_are_a_list() -> None:
    scores = np.array([[0.5, 1, np.nan], [2, 3, 4]], F32)
    values = Scores()(batch_of([b"{}"] * 2), scores, "out").values
    assert [json.loads(value) for value in values] == [{"id": 0, "scores": [0.5, 1, None]}, {"id": 1, "scores": [2, 3, 4]}]


def test_an_event_is_completed_in_its_own_bytes() -> None:
    events = [b'{"at":1,"x":"0.5,", "prediction":null}', b'{"prediction": null }\n', b'{"prediction":null,"n":1e5}', b"{ }"]
    scores = np.array([[0.25, -1e-7], [1, 2], [3, 4], [5, np.nan]], F32)
    batch = batch_of(events)
    messages = Echo("prediction")(batch, scores, "out")
    assert messages.keys == batch["_key"].to_pylist()
    assert messages.values == [
        b'{"at":1,"x":"0.5,", "prediction":"0.25,-1e-7,"}',
        b'{"prediction": "1,2," }\n',
        b'{"prediction":"3,4,","n":1e5}',
        b'{ "prediction":"5,nan,"}',
    ]
    assert Echo("prediction")(batch.slice(1, 2), scores[1:3], "out").values == messages.values[1:3]
    assert Echo("prediction")(batch.slice(4), scores[4:], "out").values == []
    assert Echo("p")(batch_of([b'{"p":null}']), np.array([0.5], F32), "out").values == [b'{"p":"0.5,"}']


@pytest.mark.parametrize(
    ("event", "completed"),
    [
        (b'{"p":1}', b'{"p":"7,"}'),
        (b'{"p":null,"p":null}', b'{"p":null,"p":"7,"}'),
        (b'{"q":{"p":null}}', b'{"q":{"p":null},"p":"7,"}'),
        (b'{"q":"\\"p\\":null"}', b'{"q":"\\"p\\":null","p":"7,"}'),
        (b'{"ap":null}', b'{"ap":null,"p":"7,"}'),
        (b'{",\\"p":null}', b'{",\\"p":null,"p":"7,"}'),
        (b'{"\\u0070":null}', b'{"\\u0070":"7,"}'),
        (b'{"p" :\t[1, "]"] , "q":"}"}', b'{"p" :\t"7," , "q":"}"}'),
        ('{"ü":"ö"}'.encode(), '{"ü":"ö","p":"7,"}'.encode()),
        (b"{}", b'{"p":"7,"}'),
    ],
)
def test_the_member_is_the_object_s_own_whatever_stands_around(event: bytes, completed: bytes) -> None:
    assert with_member(event, "p", ["7"]) == completed
    assert with_members(pa.array([event], pa.binary()), "p", pa.array(["7"])) == [completed]


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a JSON object"):
        with_member(b"[1]", "p", ["7"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["p", "q", 'p"', ""]), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["p", "q", "ap", "", '"p"', ',"p', "größe"])
objects = st.dictionaries(names, st.none() | json_values, max_size=4)
spacing = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:  ")])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(objects, spacing, st.booleans(), st.booleans()), max_size=7),
    st.sampled_from(["p", "größe"]),
    st.integers(1, 3),
    st.integers(0, 2),
)
@example([({}, (",", ":"), True, True)], "p", 1, 0)
def test_the_kernel_writes_what_the_definition_does(
    rows: list[tuple[dict[str, object], tuple[str, str], bool, bool]], name: str, each: int, skip: int
) -> None:
    messages = []
    for content, separators, ascii_, last in rows:
        whole = {key: value for key, value in content.items() if key != name} | {name: None} if last else content
        messages.append(json.dumps(whole, separators=separators, ensure_ascii=ascii_).encode() + (b" \n" if ascii_ else b""))
    skip = min(skip, len(messages))
    texts = [str(k / 8) for k in range(len(messages) * each)]
    found = with_members(pa.array(messages, pa.binary()).slice(skip), name, pa.array(texts, pa.string()).slice(skip * each))
    assert found == [with_member(messages[i], name, texts[i * each : (i + 1) * each]) for i in range(skip, len(messages))]
    for message, value in zip(messages[skip:], found, strict=True):
        before, after = json.loads(message), json.loads(value)
        assert list(after.pop(name).split(","))[-1] == ""
        before.pop(name, None)
        assert before == after
