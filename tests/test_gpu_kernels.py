"""Every kernel's CUDA C++ is what its naive twin says, run on the host; compiles for devices; and a broken line is found."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cuda_host import Host

import kernels.hashing.naive as hashing_naive
import kernels.histogram.naive as histogram_naive
import kernels.table.naive as table_naive
from kernels import gpu
from kernels.hashing import gpu as hashing
from kernels.histogram import gpu as histogram
from kernels.table import cpu as table_cpu
from kernels.table import gpu as table

PACKAGES = sorted(path.parent.name for path in gpu.ROOM.glob("*/gpu.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
POISON = -(2**40)


def check_histogram(host: Host, rows: int, features: int, inner: int) -> None:
    random = np.random.default_rng(rows + inner)
    edges = np.sort(random.integers(-4, 5, (features, inner)), axis=1).astype(np.float32)
    edges[:, inner - inner // 3 :] = np.inf
    matrix = random.integers(-6, 7, (rows, features)).astype(np.float32) + random.choice([0, 0.5], (rows, features))
    odd = random.random((rows, features))
    matrix = np.where(odd < 0.1, np.nan, np.where(odd < 0.15, np.inf, np.where(odd < 0.2, -np.inf, matrix))).astype(np.float32)
    expected = np.zeros((features, inner + 2), np.int64)
    histogram_naive.histogram(matrix, edges, expected)
    counts = np.full_like(expected, POISON)
    histogram.histogram(matrix, edges, counts, host)
    np.testing.assert_array_equal(counts - POISON, expected)


def check_strings(host: Host, n: int) -> None:
    random = np.random.default_rng(n)
    values = [random.integers(0, 256, random.integers(0, 40), np.uint8).tobytes() for _ in range(n)]
    valid = random.random(n) < 0.8
    column = pa.array(values, pa.binary())
    offsets = np.frombuffer(column.buffers()[1], np.int32, n + 1) if n else np.zeros(1, np.int32)
    data = np.frombuffer(b"".join(values) or b"\0", np.uint8)
    for mask in (None, valid):
        out = np.full(n, 7, np.uint64)
        hashing.hash_strings(offsets, data, mask, out, host)
        expected = [hashing_naive.hash_bytes(each if mask is None or mask[k] else None) for k, each in enumerate(values)]
        assert out.tolist() == expected


def check_integers(host: Host, n: int) -> None:
    random = np.random.default_rng(n)
    values, valid = random.integers(-(2**63), 2**63 - 1, n), random.random(n) < 0.8
    for mask in (None, valid):
        out = np.full(n, 7, np.uint64)
        hashing.hash_integers(values, mask, out, host)
        pairs = zip(values.tolist(), valid.tolist() if mask is not None else [True] * n, strict=True)
        assert out.tolist() == [hashing_naive.hash_integer(value if there else None) for value, there in pairs]


def check_combine(host: Host, n: int) -> None:
    random = np.random.default_rng(n)
    first, second = (np.where(random.random(n) < 0.2, 0, random.integers(1, 2**63, n)).astype(np.uint64) for _ in range(2))
    out = np.full(n, 7, np.uint64)
    hashing.combine(first, second, out, host)
    assert out.tolist() == [hashing_naive.combine(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]


def check_find(host: Host, n: int) -> None:
    random = np.random.default_rng(n)
    known = np.unique(random.integers(1, 2**63, n + 1).astype(np.uint64) << np.uint64(3))  # crowded: three bits are all alike
    keys, slots = table_cpu.new_table(len(known))
    table_cpu.insert(keys, slots, known, np.empty(len(known), np.int32), 0)
    others = random.integers(0, 2**63, n).astype(np.uint64) << np.uint64(3)
    hashes = np.where(random.random(n) < 0.5, others, random.choice(known, n))
    out = np.full(n, 7, np.int32)
    table.find(keys, slots, hashes, out, host)
    as_dict = {h: slot for slot, h in enumerate(known.tolist())}
    assert out.tolist() == table_naive.find(as_dict, hashes.tolist())


SIZES = [0, 1, 7, 97, 1023]
CHECKS: dict[str, Callable[[Host, int], None]] = {
    "strings": check_strings,
    "integers": check_integers,
    "combine": check_combine,
    "find": check_find,
    "histogram": lambda host, n: check_histogram(host, n, 5, 9),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("n", SIZES)
def test_a_kernel_is_its_naive_twin(host: Host, name: str, n: int) -> None:
    CHECKS[name](host, n)


@pytest.mark.parametrize(("features", "inner"), [(1, 1), (23, 6), (3, 19), (70, 150)])
def test_histograms_of_other_shapes_and_of_more_features_than_fit_a_block(host: Host, features: int, inner: int) -> None:
    check_histogram(host, 257, features, inner)


BROKEN = [
    ("histogram", "of[middle] < value", "of[middle] <= value"),
    ("histogram", "value != value ? inner + 1 : low", "low"),
    ("histogram", "* features + first + feature]", "* some + feature]"),
    ("histogram", "mine[i] = 0;", ";"),
    ("histogram", "atomicAdd(counts + (long long)first * bins + i", "atomicAdd(counts + i"),
    ("strings", "chain(0, (u64)(end - start))", "chain(0, 0)"),
    ("strings", "if (valid && !valid[i]) {", "if (false) {"),
    ("strings", "word = word << 8 | data[j]", "word = word << 7 | data[j]"),
    ("integers", "chain(0, 8)", "chain(0, 4)"),
    ("combine", "first[i] && second[i] ?", "first[i] ?"),
    ("combine", "(h ^ word) + 0x9E3779B97F4A7C15ull", "(h ^ word)"),
    ("find", "at = (at + 1) & mask", "at = (at + 2) & mask"),
    ("find", "if (keys[at] == h) {", "if (true) {"),
    ("find", "int found = -1;", "int found = 0;"),
]


@pytest.mark.parametrize(("name", "line", "other"), BROKEN)
def test_a_broken_line_is_found(tmp_path: Path, name: str, line: str, other: str) -> None:
    broken = Host(tmp_path, (line, other))
    with pytest.raises(AssertionError):  # noqa: PT012 - which size finds it is no matter
        for n in SIZES:
            CHECKS[name](broken, n)
        check_histogram(broken, 257, 70, 150)


def test_without_the_first_barrier_counts_are_lost(tmp_path: Path) -> None:
    """Threads that count before others have set the block's memory to zero: not in each run, but in most of a few."""
    without = Host(tmp_path, ("__syncthreads();\n    const long long stride", "const long long stride"), block=64)

    def wrong() -> bool:
        try:
            check_histogram(without, 400, 23, 60)
        except AssertionError:
            return True
        return False

    assert any(wrong() for _ in range(20))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_kernel_compiles_for_a_device(tmp_path: Path, package: str, architecture: str) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("NOT PROVEN: no nvcc to compile the GPU kernels' source for devices")
    file = tmp_path / f"{package}.cu"
    file.write_text(gpu.PRELUDE + gpu.source(package))
    command = [
        nvcc,
        f"-arch={architecture}",
        "-std=c++17",
        "-cubin",
        "-Werror=all-warnings",
        "-o",
        str(tmp_path / "k"),
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "k").stat().st_size > 1000


def test_other_arrays_are_refused(host: Host) -> None:
    matrix, edges, counts = np.zeros((4, 3), np.float32), np.zeros((3, 2), np.float32), np.zeros((3, 4), np.int64)
    with pytest.raises(TypeError, match="histogram: matrix: expected float32 of 2 dimensions, contiguous, got float64 of 2"):
        histogram.histogram(matrix.astype(np.float64), edges, counts, host)
    with pytest.raises(TypeError, match=r"histogram: matrix: .* got float32 of 2 dimensions, not contiguous"):
        histogram.histogram(np.asfortranarray(matrix), edges, counts, host)
    with pytest.raises(ValueError, match="expected at most 6143 bins, got 7001"):
        histogram.histogram(matrix, np.zeros((3, 7000), np.float32), np.zeros((3, 7002), np.int64), host)
    with pytest.raises(TypeError, match="hash_integers: valid: expected bool"):
        hashing.hash_integers(np.zeros(3, np.int64), np.ones(3, np.uint8), np.zeros(3, np.uint64), host)
    with pytest.raises(ValueError, match="histogram: bins: expected 4, got 5"):
        histogram.histogram(matrix, edges, np.zeros((3, 5), np.int64), host)
    with pytest.raises(ValueError, match="hash_integers: values: expected 3, got 2"):
        hashing.hash_integers(np.zeros(2, np.int64), None, np.zeros(3, np.uint64), host)
    with pytest.raises(ValueError, match="find: keys: expected a power of two of them, got 12"):
        table.find(np.zeros(12, np.uint64), np.zeros(12, np.int32), np.zeros(3, np.uint64), np.zeros(3, np.int32), host)


def test_every_source_has_a_check_and_every_kernel_is_launched() -> None:
    assert PACKAGES == ["hashing", "histogram", "table"]
    kernels = [name for package in PACKAGES for name in re.findall(r'"C" __global__ void (\w+)', gpu.source(package))]
    assert sorted(kernels) == ["combine", "find", "hash_integers", "hash_strings", "histogram"]
    assert len(kernels) == len(CHECKS)
