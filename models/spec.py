"""What goes into a model: the list of its inputs, kept beside it as model.json, and the matrix made of a batch's columns."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kernels.hashing.cpu import hash_column
from kernels.table.cpu import find, insert, new_table

FORMAT = 1
NOTHING: Mapping[str, Any] = {}
FILE = "model.json"
Lookup: TypeAlias = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]
BOOT = Path("/proc/sys/kernel/random/boot_id")
Code = TypeVar("Code", np.int32, np.float32)


@dataclass(frozen=True)
class Input:
    """One column of the model's matrix, or `width` of them for a vector. vocabulary: the known values of a category, the first
    one coded 1. buckets: the codes of a hashed input, a category of text or integers without a vocabulary (Weinberger,
    Dasgupta, Langford, Smola, Attenberg: Feature hashing for large scale multitask learning, 2009)."""

    name: str
    kind: Literal["number", "category", "vector", "hashed"]
    vocabulary: tuple[str, ...] = ()
    width: int = 1
    buckets: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """A model's inputs in the order of its matrix's columns, how many scores it gives for a row, and how it came to be.

    seed and metrics are those of the training that made it, medians those of its numbers in training. Raises ValueError
    for an input twice, a number with a vocabulary, a vocabulary that has a value twice or is too long for exact codes in
    float32, and a width or a number of buckets or outputs that cannot be.
    """

    name: str
    inputs: tuple[Input, ...]
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    outputs: int = 1
    medians: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [each.name for each in self.inputs]
        for each in self.inputs:
            if names.count(each.name) > 1:
                raise ValueError(f"model {self.name}: input {each.name} is there {names.count(each.name)} times, expected once")
            _check(each, f"model {self.name}: input {each.name}")
        if self.outputs < 1:
            raise ValueError(f"model {self.name}: expected at least one output, got {self.outputs}")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that the model needs."""
        return tuple(each.name for each in self.inputs)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of the scores of so many rows: [n], or [n, k] of a model with k > 1 outputs."""
        return (rows,) if self.outputs == 1 else (rows, self.outputs)

    @cached_property
    def columns(self) -> int:
        """The columns of the model's matrix."""
        return sum(each.width for each in self.inputs)

    @cached_property
    def lookups(self) -> dict[str, Lookup]:
        """The vocabulary of each category, as a table from the hash of a value to its place."""
        return {each.name: _lookup(each.vocabulary) for each in self.inputs if each.kind == "category"}

    def write(self, folder: Path) -> None:
        """Writes model.json."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "seed": self.seed,
            "metrics": dict(self.metrics),
            "inputs": [_described(each) for each in self.inputs],
        }
        if self.outputs != 1:
            content["outputs"] = self.outputs
        if self.medians:
            content["medians"] = dict(self.medians)
        (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "ModelSpec":
        """Reads model.json. Raises ValueError, naming file and field, where it is not as `write` writes it."""
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot read the model's description: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path}: expected format {FORMAT}, got {found}")
        try:
            inputs = tuple(_input(item) for item in content["inputs"])
            metrics = {str(name): float(value) for name, value in content["metrics"].items()}
            medians = {str(name): float(value) for name, value in content.get("medians", {}).items()}
            return cls(str(content["name"]), inputs, int(content["seed"]), metrics, int(content.get("outputs", 1)), medians)
        except KeyError as error:
            raise ValueError(f"{path}: expected a field {error.args[0]}, got none") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None


def _check(each: Input, here: str) -> None:
    """Raises ValueError, beginning with `here`, for an input that cannot be."""
    if each.kind not in ("number", "category", "vector", "hashed"):
        raise ValueError(f"{here}: expected number, category, vector or hashed, got {each.kind!r}")
    what = "hashed category" if each.kind == "hashed" else each.kind
    if each.kind != "category" and each.vocabulary:
        raise ValueError(f"{here}: a {what} has no vocabulary")
    if each.width < 1 or (each.kind != "vector" and each.width != 1):
        raise ValueError(f"{here}: a {what} has no width of {each.width}")
    if len(set(each.vocabulary)) < len(each.vocabulary) or len(each.vocabulary) >= 2**24:
        raise ValueError(f"{here}: expected fewer than 2^24 different values")
    if each.kind != "hashed" and each.buckets:
        raise ValueError(f"{here}: a {what} has no buckets")
    if each.kind == "hashed" and not 2 <= each.buckets <= 2**24:
        raise ValueError(f"{here}: expected 2 to 2^24 buckets, got {each.buckets}")


def _described(each: Input) -> dict[str, Any]:
    more: dict[str, dict[str, Any]] = {
        "category": {"vocabulary": each.vocabulary},
        "vector": {"width": each.width},
        "hashed": {"buckets": each.buckets},
    }
    return {"name": each.name, "kind": each.kind, **more.get(each.kind, {})}


def _input(item: Any) -> Input:
    vocabulary = item.get("vocabulary", [])
    if not isinstance(vocabulary, list) or not all(isinstance(value, str) for value in vocabulary):
        raise ValueError(f"input {item['name']}: expected a vocabulary of strings, got {vocabulary!r:.80}")
    return Input(str(item["name"]), item["kind"], tuple(vocabulary), int(item.get("width", 1)), int(item.get("buckets", 0)))


def assemble(
    batch: pa.RecordBatch,
    spec: ModelSpec,
    out: npt.NDArray[np.float32] | None = None,
    computed: Mapping[str, npt.NDArray[Any]] = NOTHING,
    hashes: Mapping[str, npt.NDArray[np.uint64]] = NOTHING,
) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.bool_]]]:
    """The model's matrix float32 [n, K] of a batch's n rows, and for each category a mask bool [n] of values it does not know.

    Numbers and vectors: NaN for null; the matrix of a single vector is the batch's own memory and cannot be written to.
    Categories: the place in the vocabulary plus 1, and 0 for null and for unknown values; null is not in the mask. Hashed:
    1 + hash % (buckets - 1) by kernels/hashing, and 0 for null; none is unknown, and there is no mask. out: float32 [n, K] to
    write into, returned as the matrix. computed: numbers [n] by name, NaN for null, before the batch's columns. hashes: of
    columns of text or integers by name, those that are known. Raises ValueError, naming the input, for a column that is not
    there or of another kind.
    """
    n = batch.num_rows
    if out is not None and out.shape != (n, spec.columns):
        raise ValueError(f"model {spec.name}: expected a matrix of {n} x {spec.columns}, got {out.shape}")
    alone = out is None and len(spec.inputs) == 1 and spec.inputs[0].kind == "vector"
    matrix = np.empty((0 if alone else n, spec.columns), np.float32) if out is None else out
    unknown: dict[str, npt.NDArray[np.bool_]] = {}
    schema = batch.schema
    end = 0
    for each in spec.inputs:
        k, end = end, end + each.width
        if each.kind == "number" and (values := computed.get(each.name)) is not None:
            matrix[:, k] = values
            continue
        place = schema.get_field_index(each.name)
        if place < 0:
            raise ValueError(f"model {spec.name}: input {each.name}: expected a column of this name, got none in the batch")
        column = batch.column(place)
        try:
            if each.kind == "category":
                codes = _codes(column, spec.lookups[each.name], hashes.get(each.name))
                matrix[:, k] = codes
                unknown[each.name] = _unknown(column, codes)
            elif each.kind == "hashed":
                matrix[:, k] = _hashed(column, each.buckets, hashes.get(each.name))
            elif alone:
                matrix = _vectors(column, each.width)
            elif each.kind == "vector":
                matrix[:, k:end] = _vectors(column, each.width)
            else:
                matrix[:, k] = _numbers(column)
        except (pa.ArrowException, TypeError):
            wanted = {"vector": f"a vector of {each.width} numbers", "hashed": "text or integers"}
            what = wanted.get(each.kind, f"a {each.kind}")
            raise ValueError(f"model {spec.name}: input {each.name}: expected {what}, got {column.type}") from None
    return matrix, unknown


def _lookup(vocabulary: Sequence[str]) -> Lookup:
    keys, slots = new_table(len(vocabulary))
    insert(keys, slots, hash_column(pa.array(vocabulary, pa.string())), np.empty(len(vocabulary), np.int32), 0)
    return keys, slots


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise TypeError
    if column.null_count and pa.types.is_boolean(kind):
        column = column.cast(pa.float32())
    return column.to_numpy(zero_copy_only=False)


@cache
def _list_type(width: int) -> pa.DataType:
    return pa.list_(pa.float32(), width)


def _vectors(column: pa.Array, width: int) -> npt.NDArray[np.float32]:
    """The rows of a column of lists [n, width], not copied where none is null."""
    if column.type != _list_type(width):
        raise TypeError
    start, n = column.offset, len(column)
    matrix: npt.NDArray[np.float32] = column.values.to_numpy(zero_copy_only=False).reshape(-1, width)[start : start + n]
    if column.null_count:
        matrix = np.where(column.is_valid().to_numpy(zero_copy_only=False)[:, None], matrix, np.float32(np.nan))
    return matrix


def _codes(column: pa.Array, lookup: Lookup, hashed: npt.NDArray[np.uint64] | None = None) -> npt.NDArray[np.int32]:
    """Codes int32 [n], 0 for null and for what is not in the vocabulary."""
    if isinstance(column, pa.DictionaryArray):
        return _by_code(column, _codes(column.dictionary, lookup))
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise TypeError
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    codes = np.empty(len(column), np.int32)
    find(*lookup, hash_column(column) if hashed is None else hashed, codes)
    codes += 1
    return codes


def _hashed(column: pa.Array, buckets: int, hashes: npt.NDArray[np.uint64] | None = None) -> npt.NDArray[np.float32]:
    """Codes float32 [n], which holds them exactly: 1 + hash % (buckets - 1), 0 for null."""
    if hashes is None:
        if isinstance(column, pa.DictionaryArray):
            return _by_code(column, _hashed(column.dictionary, buckets))
        hashes = hash_column(column.cast(pa.string()) if pa.types.is_large_string(column.type) else column)
    codes = (hashes % (buckets - 1)).astype(np.float32)
    codes += 1
    codes[hashes == 0] = 0
    return codes


def _by_code(column: pa.DictionaryArray, codes: npt.NDArray[Code]) -> npt.NDArray[Code]:
    """The codes [n] of a dictionary column from those of its values, 0 for null."""
    codes = np.append(codes, np.zeros(1, codes.dtype))
    return codes[column.indices.fill_null(len(codes) - 1).to_numpy()]


def _unknown(column: pa.Array, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    missing = codes == 0
    return missing & column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else missing


def digest(folder: Path) -> str:
    """The SHA-256, in hex, of the names (relative to the folder, in order) and bytes of all files of a folder. Raises
    ValueError for a symbolic link: what it leads to may be another's, and change."""
    total = hashlib.sha256()
    for path in _files(folder):
        name = path.relative_to(folder).as_posix().encode()
        total.update(b"%d %d\n" % (len(name), path.stat().st_size) + name)
        with path.open("rb", buffering=0) as file:
            hashlib.file_digest(file, lambda: total)  # in pieces
    return total.hexdigest()


def state(*folders: Path) -> str:
    """What tells, without reading them, that the files of folders are those that were digested before: the SHA-256, in hex, of
    their names, sizes, places on the disk, and when bytes or name were changed, which a process cannot set; with this start of
    the machine, since after a loss of power a file may be as long as it was, and have other bytes. Empty where the system does
    not tell its starts. Raises as `digest`.
    """
    if not BOOT.exists():
        return ""
    total = hashlib.sha256(BOOT.read_bytes())
    for folder in folders:
        for path in _files(folder):
            told, name = path.stat(), path.relative_to(folder).as_posix()
            total.update(f"{name}\0{told.st_size} {told.st_dev} {told.st_ino} {told.st_ctime_ns}\0".encode())
        total.update(b"\0")
    return total.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path}: expected a file or a folder, got a symbolic link")
        if path.is_file():
            yield path
