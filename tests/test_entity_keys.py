"""Entities are named in the online store as Feast names them."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.entity_keys import entity_keys
from features.views import StoredFeaturesError, View, load_feast

load_feast()
from feast import ValueType  # noqa: E402 - after load_feast, as CONTRIBUTING says
from feast.infra.key_encoding_utils import serialize_entity_key  # noqa: E402
from feast.protos.feast.types.EntityKey_pb2 import EntityKey  # noqa: E402
from feast.type_map import python_values_to_proto_values  # noqa: E402

KINDS = {
    ValueType.STRING: (st.text(max_size=20), pa.string()),
    ValueType.INT64: (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    ValueType.INT32: (st.integers(-(2**31), 2**31 - 1), pa.int32()),
}


def view(names: list[str], kinds: list[Any]) -> View:
    return View("v", tuple(f"column_{name}" for name in names), tuple(names), tuple(kinds), ("f",), 0, None)


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3, unique=True), st.data())
def test_keys_are_those_of_feast(names: list[str], data: Any) -> None:
    kinds = [data.draw(st.sampled_from(list(KINDS))) for _ in names]
    rows = data.draw(st.lists(st.tuples(*(KINDS[kind][0] for kind in kinds)), max_size=5))
    columns = [pa.array([row[k] for row in rows], KINDS[kind][1]) for k, kind in enumerate(kinds)]
    expected = []
    for row in rows:
        values = [python_values_to_proto_values([value], kind)[0] for value, kind in zip(row, kinds, strict=True)]
        expected.append(serialize_entity_key(EntityKey(join_keys=names, entity_values=values), 3))
    assert entity_keys(view(names, kinds))(columns) == expected


def test_a_dictionary_column_is_text() -> None:
    keys = entity_keys(view(["card"], [ValueType.STRING]))
    assert keys([pa.array(["a", "b", "a"]).dictionary_encode()]) == keys([pa.array(["a", "b", "a"])])


def test_what_cannot_be_an_entity_is_named() -> None:
    with pytest.raises(StoredFeaturesError, match="view v: expected an entity of text or whole numbers, got FLOAT at column_x"):
        entity_keys(view(["x"], [ValueType.FLOAT]))
    with pytest.raises(StoredFeaturesError, match="view v: expected whole numbers, got string at column_x"):
        entity_keys(view(["x"], [ValueType.INT64]))([pa.array(["7"])])
