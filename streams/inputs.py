"""A model's inputs beside a pipeline's features: by name, order and type, both lists shown where they differ."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Literal

import pyarrow as pa

from features.derived import compile_derived
from features.spec import Derived, Fields, Stored
from models.spec import Input, ModelSpec
from streams.pipeline import Pipeline

Typed = tuple[str, str]


class InputsDifferError(ValueError):
    """A model's inputs are not the pipeline's features; the notes show both lists side by side."""


def features_of(pipeline: Pipeline, stored: Sequence[str]) -> list[Typed]:
    """The pipeline's features in its order, each with the kind of input that it makes: number, category, vector or time.

    stored: the names of the stored ones.
    """
    columns, found = pipeline.columns, list[Typed]()
    derived = dict(compile_derived(pipeline.features, columns, stored))
    for feature in pipeline.features:
        if isinstance(feature, Fields):
            found += [(name, _kind(columns.field(name).type)) for name in feature.names]
        elif isinstance(feature, Derived):
            found.append((feature.name, _kind(derived[feature.name].type)))
        else:
            names = stored if isinstance(feature, Stored) else feature.names
            found += [(name, "number") for name in names]
    return found


def compare(model: str, inputs: Sequence[Typed], pipeline: str, features: Sequence[Typed]) -> tuple[str, ...]:
    """The features that the model leaves out. Raises InputsDifferError, with both lists side by side in its notes, unless each
    input is a feature of the same name and kind, in the same order."""
    rest = iter(features)
    if all(each in rest for each in inputs):
        return tuple(name for name, kind in features if (name, kind) not in inputs)
    left, right = [" ".join(each) for each in inputs], [" ".join(each) for each in features]
    rows: list[tuple[str, str, str]] = []
    for tag, i, j, k, l in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        mark = " " if tag in ("equal", "insert") and not (tag == "insert" and _moved(right[k:l], left)) else ">"
        rows += [(mark, one, other) for one, other in zip_longest(left[i:j], right[k:l], fillvalue="-")]
    said = f"{model}: its inputs are not features of {pipeline} in name, order and type: see the lines marked with >"
    raise _differ(said, model, pipeline, rows)


def require(model: str, inputs: Sequence[Typed], pipeline: str, features: Sequence[Typed]) -> tuple[str, ...]:
    """The features that a model of the registry leaves out. Raises InputsDifferError unless each input is a feature of the same
    name and kind; their order is the model's own, in which it gets them."""
    if set(inputs) <= set(features):
        return tuple(name for name, kind in features if (name, kind) not in inputs)
    kinds, used = dict(features), {name for name, _ in inputs}
    rows = [
        (" " if (name, kind) in features else ">", f"{name} {kind}", f"{name} {kinds[name]}" if name in kinds else "-")
        for name, kind in inputs
    ]
    rows += [(" ", "-", f"{name} {kind}") for name, kind in features if name not in used]
    said = (
        f"{model}: it has inputs that are not features of {pipeline}: see the lines marked with >, and make one that fits "
        f"(headrace train, headrace models register)"
    )
    raise _differ(said, model, pipeline, rows)


def needed(pipeline: Pipeline, spec: ModelSpec) -> list[Typed]:
    """The model's inputs, each with the kind of feature that it takes. A hashed one takes a field of text or integers; where
    there is none it stays "hashed", which no feature is."""
    fields = {name for feature in pipeline.features if isinstance(feature, Fields) for name in feature.names}
    types = {name: pipeline.columns.field(name).type for name in fields}
    return [(each.name, _taken(each, types.get(each.name))) for each in spec.inputs]


def fits(pipeline: Pipeline, spec: ModelSpec, version: int, stored: Sequence[str]) -> None:
    """Raises ValueError for a version of the model that the pipeline cannot use. stored: the names of the stored features."""
    if spec.outputs != 1 and (pipeline.policy or pipeline.drift):
        raise ValueError(f"model {spec.name}: expected one output, as policies and drift need, got {spec.outputs}")
    called = f"model {pipeline.model.name} version {version}"
    require(called, needed(pipeline, spec), f"pipeline {pipeline.name}", features_of(pipeline, stored))
    if pipeline.drift and any(each.kind == "vector" for each in spec.inputs):
        raise ValueError(f"model {spec.name}: expected numbers and categories, whose drift can be measured, got a vector")


def _differ(said: str, model: str, pipeline: str, rows: Sequence[tuple[str, str, str]]) -> InputsDifferError:
    error = InputsDifferError(said)
    width = max(len(model), *(len(one) for _, one, _ in rows))
    error.add_note(f"    {model:{width}}  {pipeline}")
    for mark, one, other in rows:
        error.add_note(f"  {mark} {one:{width}}  {other}")
    return error


def _moved(features: Iterable[str], inputs: Sequence[str]) -> bool:
    return any(each in inputs for each in features)


def _taken(each: Input, field: pa.DataType | None) -> str:
    if each.kind != "hashed" or field is None:
        return each.kind
    kind = _kind(field)
    return kind if kind == "category" or pa.types.is_integer(field) else each.kind


def _kind(column: pa.DataType) -> Literal["number", "category", "vector", "time"]:
    if pa.types.is_string(column) or pa.types.is_dictionary(column):
        return "category"
    if pa.types.is_timestamp(column):
        return "time"
    return "vector" if pa.types.is_fixed_size_list(column) else "number"
