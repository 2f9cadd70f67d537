"""Every GPU kernel against its naive twin, wherever it is launched: on a device by bench.gpu, on the host by the tests."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

import kernels.assemble.naive as assemble_naive
import kernels.gather.naive as gather_naive
import kernels.hashing.naive as hashing_naive
import kernels.histogram.naive as histogram_naive
import kernels.table.naive as table_naive
from kernels.assemble import gpu as assemble
from kernels.assemble.cpu import BUCKET, MISSING, NUMBER, ONE_HOT, Column, Plan, plan
from kernels.gather import gpu as gather
from kernels.gpu import Launch
from kernels.hashing import gpu as hashing
from kernels.histogram import gpu as histogram
from kernels.table import cpu as table_cpu
from kernels.table import gpu as table

POISON = -(2**40)
SIZES = (0, 1, 7, 97, 1023)
COLUMNS = [
    Column(NUMBER, 0),
    Column(NUMBER, 1, 0, (0.5, -5.0, 7.0, 0.0, 0.25, 3.0)),
    Column(NUMBER, 3, 0, (-2.0, -900.0, 900.0, 1.0, 0.5, 2.0)),
    Column(MISSING, 1),
    Column(MISSING, 3),
    *(Column(ONE_HOT, 2, code) for code in (0, 1, 3)),
    Column(BUCKET, 0, 2),
    Column(BUCKET, 2, 1000),
    Column(BUCKET, 1, 2**24),
]
"""A plan with each kind of column."""
LOGARITHM = 2
FIRST = 1


class On(NamedTuple):
    """Where kernels run: how they are launched, arrays are put there, and taken from there."""

    launch: Launch
    put: Callable[[Any], Any] = lambda array: array
    take: Callable[[Any], Any] = lambda array: array


def check_histogram(on: On, rows: int, features: int = 5, inner: int = 9) -> None:
    """Numbers on edges and beside them, NaN and infinities; edges that are padded."""
    random = np.random.default_rng(rows + inner)
    edges = np.sort(random.integers(-4, 5, (features, inner)), axis=1).astype(np.float32)
    edges[:, inner - inner // 3 :] = np.inf
    matrix = random.integers(-6, 7, (rows, features)).astype(np.float32) + random.choice([0, 0.5], (rows, features))
    odd = random.random((rows, features))
    matrix = np.where(odd < 0.1, np.nan, np.where(odd < 0.15, np.inf, np.where(odd < 0.2, -np.inf, matrix))).astype(np.float32)
    expected = np.zeros((features, inner + 2), np.int64)
    histogram_naive.histogram(matrix, edges, expected)
    counts = on.put(np.full_like(expected, POISON))
    histogram.histogram(on.put(matrix), on.put(edges), counts, on.launch)
    np.testing.assert_array_equal(on.take(counts) - POISON, expected)


def check_strings(on: On, n: int) -> None:
    """Of 0 to 39 bytes, some null."""
    random = np.random.default_rng(n)
    values = [random.integers(0, 256, random.integers(0, 40), np.uint8).tobytes() for _ in range(n)]
    valid = random.random(n) < 0.8
    column = pa.array(values, pa.binary())
    offsets = np.frombuffer(column.buffers()[1], np.int32, n + 1) if n else np.zeros(1, np.int32)
    data = np.frombuffer(b"".join(values) or b"\0", np.uint8)
    for mask in (None, valid):
        out = on.put(np.full(n, 7, np.uint64))
        hashing.hash_strings(on.put(offsets), on.put(data), None if mask is None else on.put(mask), out, on.launch)
        expected = [hashing_naive.hash_bytes(each if mask is None or mask[k] else None) for k, each in enumerate(values)]
        np.testing.assert_array_equal(on.take(out), np.array(expected, np.uint64))


def check_integers(on: On, n: int) -> None:
    """Of any 64 bits, some null."""
    random = np.random.default_rng(n)
    values, valid = random.integers(-(2**63), 2**63 - 1, n), random.random(n) < 0.8
    for mask in (None, valid):
        out = on.put(np.full(n, 7, np.uint64))
        hashing.hash_integers(on.put(values), None if mask is None else on.put(mask), out, on.launch)
        pairs = zip(values.tolist(), valid.tolist() if mask is not None else [True] * n, strict=True)
        expected = [hashing_naive.hash_integer(value if there else None) for value, there in pairs]
        np.testing.assert_array_equal(on.take(out), np.array(expected, np.uint64))


def check_combine(on: On, n: int) -> None:
    """Two hashes, either null at times."""
    random = np.random.default_rng(n)
    first, second = (np.where(random.random(n) < 0.2, 0, random.integers(1, 2**63, n)).astype(np.uint64) for _ in range(2))
    out = on.put(np.full(n, 7, np.uint64))
    hashing.combine(on.put(first), on.put(second), out, on.launch)
    expected = [hashing_naive.combine(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    np.testing.assert_array_equal(on.take(out), np.array(expected, np.uint64))


def check_find(on: On, n: int) -> None:
    """Half of them there, in a crowded table: three bits are all alike. Three belong into the last slot: two begin anew."""
    random = np.random.default_rng(n)
    last = random.integers(1, 2**63, 3).astype(np.uint64) | np.uint64(2**24 - 1)
    known = np.unique(np.append(random.integers(1, 2**63, n + 1).astype(np.uint64) << np.uint64(3), last))
    keys, slots = table_cpu.new_table(len(known))
    table_cpu.insert(keys, slots, known, np.empty(len(known), np.int32), 0)
    others = random.integers(0, 2**63, n).astype(np.uint64) << np.uint64(3)
    hashes = np.where(random.random(n) < 0.5, others, random.choice(known, n))
    hashes[:3] = last[:n]
    out = on.put(np.full(n, 7, np.int32))
    table.find(on.put(keys), on.put(slots), on.put(hashes), out, on.launch)
    as_dict = {h: slot for slot, h in enumerate(known.tolist())}
    np.testing.assert_array_equal(on.take(out), np.array(table_naive.find(as_dict, hashes.tolist()), np.int32))


def assemble_inputs(rows: int) -> tuple[Any, Any, Plan]:
    """A matrix [rows, 4], codes in column 2, with NaN and infinities; hashes [3, rows], some null; a plan of every kind."""
    random = np.random.default_rng(rows)
    matrix = random.normal(size=(rows, 4)) * [1, 9, 1, 900]
    matrix[:, 2] = random.integers(0, 5, rows)
    odd = random.random((rows, 4))
    matrix = np.where(odd < 0.1, np.nan, np.where(odd < 0.15, np.inf, np.where(odd < 0.2, -np.inf, matrix)))
    hashes = random.integers(1, 2**64, (3, rows), np.uint64)
    hashes[random.random((3, rows)) < 0.2] = 0
    return matrix.astype(np.float32), hashes, plan(COLUMNS)


def assert_assembled(out: Any, expected: Any) -> None:
    """To the bit, but for the column that goes through a logarithm."""
    others = np.arange(len(COLUMNS)) != LOGARITHM
    np.testing.assert_array_equal(out[:, others], expected[:, others])
    np.testing.assert_allclose(out[:, LOGARITHM], expected[:, LOGARITHM], rtol=1e-5, atol=1e-6)


def check_assemble(on: On, n: int) -> None:
    """Each kind of column."""
    matrix, hashes, plan = assemble_inputs(n)
    expected = np.empty((n, len(plan.kinds)), np.float32)
    assemble_naive.assemble(matrix, hashes, *plan, expected)
    out = on.put(np.full_like(expected, np.nan))
    kinds, sources, places, values = map(on.put, plan)
    assemble.assemble(on.put(matrix), on.put(hashes), kinds, sources, places, values, out, on.launch)
    assert_assembled(on.take(out), expected)


def gather_inputs(rows: int, width: int) -> tuple[Any, Any, Any]:
    """A matrix [rows, 5] of codes, many of them unknown; three tables, of which one has a single row, and a row of none of them
    after the last; and where they begin."""
    random = np.random.default_rng(rows)
    matrix = random.integers(-2, 12, (rows, 5)) + random.choice([0, 0.5], (rows, 5))
    odd = random.random((rows, 5))
    matrix = np.where(odd < 0.05, np.nan, np.where(odd < 0.1, np.inf, np.where(odd < 0.15, -np.inf, matrix)))
    starts = np.array([0, 5, 6, 16], np.int64)
    return matrix.astype(np.float32), random.normal(size=(17, width)).astype(np.float32), starts


def check_gather(on: On, n: int, width: int) -> None:
    """Known and unknown codes."""
    matrix, tables, starts = gather_inputs(n, width)
    expected = np.empty((n, len(starts) - 1, width), np.float32)
    gather_naive.gather(matrix, FIRST, tables, starts, expected)
    out = on.put(np.full_like(expected, np.nan))
    gather.gather(on.put(matrix), FIRST, on.put(tables), on.put(starts), out, on.launch)
    np.testing.assert_array_equal(on.take(out), expected)


CHECKS: dict[str, Callable[[On, int], None]] = {
    "strings": check_strings,
    "integers": check_integers,
    "combine": check_combine,
    "find": check_find,
    "histogram": check_histogram,
    "assemble": check_assemble,
    "gather": partial(check_gather, width=3),
    "gather4": partial(check_gather, width=8),
}
