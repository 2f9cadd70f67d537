"""Models trained elsewhere: an ONNX graph as other tools export it, made into the one that the engine takes.

What exporters of trees and of scikit-learn make differs in its shell only: one matrix or an input for each column, floats or
doubles, a label beside the probabilities, probabilities in a sequence of maps. The shell is replaced, the rest is not touched.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pyarrow as pa
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from models.engine import UNLOADABLE, ModelRefused, check_graph
from models.spec import Input

MATRIX, SCORE = "headrace_matrix", "headrace_score"
CODED = MATRIX + "_coded"
OPSET = 17
REAL = (TensorProto.FLOAT, TensorProto.DOUBLE)
CASTABLE = (*REAL, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


def inputs_of(frame: pa.Schema, not_features: Sequence[str]) -> tuple[Input, ...]:
    """A frame's columns as a model's inputs, in order: numbers, and dictionaries as categories, without their vocabulary.

    Raises ModelRefused for any other type.
    """
    found = []
    for field in frame:
        if field.name in not_features:
            continue
        kind = field.type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            found.append(Input(field.name, "number"))
        elif pa.types.is_dictionary(kind) and (
            pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
        ):
            found.append(Input(field.name, "category"))
        else:
            more = ": a category needs the order of its codes, so make it a dictionary" if pa.types.is_string(kind) else ""
            raise ModelRefused(
                f"reference: column {field.name}: expected a number or a dictionary of strings, got {kind}{more}"
            )
    return tuple(found)


def adapt(content: bytes, inputs: Sequence[Input], what: str, output: str = "") -> onnx.ModelProto:
    """The model with one input float [n, K], its columns as `inputs` says, and one output float [n, 1], the score.

    content: an ONNX file. It takes one matrix of K columns, or one input [n, 1] or [n] for each name. It gets a category as its
    place in the vocabulary, from 0, and -1 for what is missing or unknown, as pandas codes it. Its score is the output named
    `output`, or the only one of floats, or the one whose name says that it is probabilities; of probabilities of two classes
    it is the second's. Raises ModelRefused, beginning with `what`, where that cannot be told.
    """
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelRefused(f"{what}: expected an ONNX model: {error}") from None
    if not model.graph.output:
        raise ModelRefused(f"{what}: expected an ONNX model, got a file without outputs")
    check_graph(model, what)
    if not any(each.domain in ("", "ai.onnx") for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", OPSET))
    names = [each.name for each in inputs]
    offsets = np.array([[each.kind == "category" for each in inputs]], np.float32)
    before = _take_matrix(model.graph, names, offsets, what)
    score = _score(model.graph, what, output)
    nodes = [*before, *model.graph.node]
    _cut(model, nodes, names, score)
    columns = _columns(model, len(names), what, score)
    raw, after = (SCORE + "_raw", [])
    if columns == 2:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), SCORE + "_class"))
        after.append(helper.make_node("Gather", [score, SCORE + "_class"], [raw], axis=1))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], np.int64), SCORE + "_shape"))
        after.append(helper.make_node("Reshape", [score, SCORE + "_shape"], [raw]))
    after.append(helper.make_node("Cast", [raw], [SCORE], to=TensorProto.FLOAT))
    _cut(model, [*nodes, *after], names, SCORE)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, ["n", 1]))
    return model


def _take_matrix(
    graph: onnx.GraphProto, names: Sequence[str], offsets: npt.NDArray[np.float32], what: str
) -> list[onnx.NodeProto]:
    """The nodes that make the graph's own inputs of the matrix minus `offsets` [1, K]."""
    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    for each in inputs:
        if each.type.tensor_type.elem_type not in CASTABLE:
            raise ModelRefused(f"{what}: input {each.name}: expected numbers, got {_type(each)}: categories come in as codes")
    graph.initializer.append(numpy_helper.from_array(offsets, CODED + "_offsets"))
    coded = helper.make_node("Sub", [MATRIX, CODED + "_offsets"], [CODED])
    if len(inputs) == 1:
        shape = _shape(inputs[0])
        if len(shape) == 2 and shape[1] in (len(names), None):
            return [coded, _cast(CODED, inputs[0].name, inputs[0])]
        raise ModelRefused(
            f"{what}: input {inputs[0].name}: expected a matrix of as many columns as the reference has ({len(names)}: "
            f"{', '.join(names)}), got {_type(inputs[0])}"
        )
    nodes = [coded]
    unknown = [each.name for each in inputs if each.name not in names]
    unfed = [name for name in names if name not in [each.name for each in inputs]]
    if unknown or unfed:
        raise ModelRefused(
            f"{what}: expected an input for each column of the reference, "
            f"got {_list(unknown)} that are no columns, and no input for {_list(unfed)}"
        )
    for each in inputs:
        if _shape(each)[1:] not in ([], [1]):
            raise ModelRefused(f"{what}: input {each.name}: expected [n, 1] or [n], got {_type(each)}")
        place = numpy_helper.from_array(np.array([names.index(each.name)], np.int64), f"{MATRIX}_at_{each.name}")
        flat = numpy_helper.from_array(np.array([-1, *_shape(each)[1:]], np.int64), f"{MATRIX}_as_{each.name}")
        graph.initializer.extend([place, flat])
        column, shaped = f"{MATRIX}_of_{each.name}", f"{MATRIX}_for_{each.name}"
        nodes.append(helper.make_node("Gather", [CODED, place.name], [column], axis=1))
        nodes.append(helper.make_node("Reshape", [column, flat.name], [shaped]))
        nodes.append(_cast(shaped, each.name, each))
    return nodes


def _score(graph: onnx.GraphProto, what: str, output: str) -> str:
    """The name of the tensor that has the score or the probabilities."""
    made_by = {name: node for node in graph.node for name in node.output}
    found = {}
    for each in graph.output:
        node = made_by.get(each.name)
        if node is not None and node.op_type == "ZipMap":
            found[each.name] = node.input[0]
        elif each.type.tensor_type.elem_type in REAL:
            found[each.name] = each.name
    if output:
        found = {name: tensor for name, tensor in found.items() if name == output}
    elif len(found) > 1:
        found = {name: tensor for name, tensor in found.items() if "prob" in name.lower()}
    if len(found) != 1:
        expected = f"an output {output} of floats" if output else "one output of floats, or one named as probabilities"
        got = ", ".join(f"{each.name} {_type(each)}" for each in graph.output)
        raise ModelRefused(f"{what}: expected {expected}, got {got}{'' if output else ': name it with --output'}")
    return next(iter(found.values()))


def _cut(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], names: Sequence[str], score: str) -> None:
    """Leaves of the graph what makes `score` out of the matrix."""
    graph, needed, kept = model.graph, {score}, []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed.update(_read(node))
    weights = [each for each in graph.initializer if each.name in needed]
    del graph.node[:], graph.initializer[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
    graph.input.append(helper.make_tensor_value_info(MATRIX, TensorProto.FLOAT, ["n", len(names)]))
    graph.output.append(onnx.ValueInfoProto(name=score))


def _read(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for inner in graph.node:
                yield from _read(inner)
            yield from (each.name for each in graph.output)


def _columns(model: onnx.ModelProto, width: int, what: str, score: str) -> int:
    """1 or 2, the columns of the output, seen with three rows of zeros."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = session.run([score], {MATRIX: np.zeros((3, width), np.float32)})[0]
    except UNLOADABLE as error:
        raise ModelRefused(f"{what}: ONNX Runtime cannot run it: {' '.join(str(error).split())}") from None
    if made.shape not in ((3,), (3, 1), (3, 2)):
        expected = "a score a row, or the probabilities of two classes"
        raise ModelRefused(f"{what}: output {score}: expected {expected}, got {list(made.shape)} of three rows")
    return int(made.size) // 3


def _cast(source: str, target: str, like: onnx.ValueInfoProto) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=like.type.tensor_type.elem_type)


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    return [each.dim_value or None for each in value.type.tensor_type.shape.dim]


def _type(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return str(value.type.WhichOneof("value")).removesuffix("_type")
    shape = ", ".join(str(each or "n") for each in _shape(value))
    return f"{TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()} [{shape}]"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
