"""The stand of `bench.gpu` for kernels: each on a batch that lies on the device and is larger than its cache, by CuPy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kernels.assemble import gpu as assemble
from kernels.gather import gpu as gather
from kernels.hashing import gpu as hashing
from kernels.histogram import gpu as histogram
from kernels.table import cpu as table_cpu
from kernels.table import gpu as table

SECTOR = 32
"""The bytes that a device reads at least, where what is read lies here and there."""
ROWS, ITEMS, TEXT, KNOWN = 2**23, 2**26, 14, 2**24
FEATURES, EDGES = 23, 19
TABLES, TABLE_ROWS, WIDTH, GATHERED = 26, 100_000, 128, 2**16


@dataclass(frozen=True)
class GpuCase:
    """A kernel. moved: the bytes that any implementation reads and writes. run: launches it."""

    kernel: str
    what: str
    moved: int
    run: Callable[[], Any]


def histograms(cupy: Any) -> GpuCase:
    """As many features as flights have."""
    random = cupy.random.default_rng(0)
    matrix = random.standard_normal((ROWS, FEATURES), cupy.float32)
    edges = cupy.sort(random.standard_normal((FEATURES, EDGES), cupy.float32), axis=1)
    counts = cupy.zeros((FEATURES, EDGES + 2), cupy.int64)
    run = partial(histogram.histogram, matrix, edges, counts)
    return GpuCase("histogram", f"{ROWS:,} rows of {FEATURES} numbers, {EDGES + 1} bins", matrix.nbytes, run)


def strings(cupy: Any) -> GpuCase:
    """Names of entities, as cards have them."""
    n = ITEMS // 4
    offsets = cupy.arange(0, TEXT * (n + 1), TEXT, dtype=cupy.int32)
    data = cupy.random.default_rng(0).integers(0, 256, TEXT * n, dtype=cupy.uint8)
    out = cupy.zeros(n, cupy.uint64)
    run = partial(hashing.hash_strings, offsets, data, None, out)
    return GpuCase("hashing", f"{n:,} texts of {TEXT} bytes", offsets.nbytes + data.nbytes + out.nbytes, run)


def integers(cupy: Any) -> GpuCase:
    """All there."""
    values, out = cupy.arange(ITEMS, dtype=cupy.int64), cupy.zeros(ITEMS, cupy.uint64)
    run = partial(hashing.hash_integers, values, None, out)
    return GpuCase("hashing", f"{ITEMS:,} integers", values.nbytes + out.nbytes, run)


def find(cupy: Any) -> GpuCase:
    """All there, in a table larger than the device's cache."""
    known = np.random.default_rng(0).integers(1, 2**63, KNOWN).astype(np.uint64)
    keys, slots = table_cpu.new_table(KNOWN)
    table_cpu.insert(keys, slots, known, np.empty(KNOWN, np.int32), 0)
    hashes = cupy.asarray(known)[cupy.random.default_rng(0).integers(0, KNOWN, ITEMS)]
    out = cupy.zeros(ITEMS, cupy.int32)
    run = partial(table.find, cupy.asarray(keys), cupy.asarray(slots), hashes, out)
    return GpuCase("table", f"{ITEMS:,} look-ups among {KNOWN:,}", hashes.nbytes + out.nbytes + 2 * SECTOR * ITEMS, run)


def assembled(cupy: Any) -> GpuCase:
    """Numbers standardised, with what is missing."""
    random, columns = cupy.random.default_rng(0), 2 * FEATURES
    matrix, out = random.standard_normal((ROWS, FEATURES), cupy.float32), cupy.zeros((ROWS, columns), cupy.float32)
    kinds = cupy.repeat(cupy.arange(2, dtype=cupy.int32), FEATURES)
    sources, places = cupy.tile(cupy.arange(FEATURES, dtype=cupy.int32), 2), cupy.zeros(columns, cupy.int32)
    values = cupy.tile(cupy.asarray([0, -3, 3, 1, 0, 1], cupy.float32), (columns, 1))
    run = partial(assemble.assemble, matrix, cupy.zeros((0, ROWS), cupy.uint64), kinds, sources, places, values, out)
    return GpuCase("assemble", f"{ROWS:,} rows of {FEATURES} numbers", matrix.nbytes + out.nbytes, run)


def gathered(cupy: Any) -> GpuCase:
    """As DLRM has them."""
    matrix = cupy.random.default_rng(0).integers(0, TABLE_ROWS, (GATHERED, TABLES)).astype(cupy.float32)
    tables = cupy.zeros((TABLES * TABLE_ROWS, WIDTH), cupy.float32)
    starts = cupy.arange(0, TABLE_ROWS * (TABLES + 1), TABLE_ROWS, dtype=cupy.int64)
    out = cupy.zeros((GATHERED, TABLES, WIDTH), cupy.float32)
    run = partial(gather.gather, matrix, 0, tables, starts, out)
    return GpuCase("gather", f"{GATHERED:,} x {TABLES} rows of {WIDTH} numbers", 2 * out.nbytes + matrix.nbytes, run)


CASES: dict[str, Callable[[Any], GpuCase]] = {
    "histogram": histograms,
    "strings": strings,
    "integers": integers,
    "find": find,
    "assemble": assembled,
    "gather4": gathered,
}
"""By the check (bench/gpu_checks.py) that comes first."""
