"""Every kernel's CUDA C++ is what its naive twin says, run on the host; compiles for devices; and a broken line is found."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host import Host

from bench.gpu_checks import CHECKS, SIZES, On, assemble_inputs, check_histogram, gather_inputs
from kernels import gpu
from kernels.assemble import gpu as assemble
from kernels.gather import gpu as gather
from kernels.hashing import gpu as hashing
from kernels.histogram import gpu as histogram
from kernels.table import gpu as table

PACKAGES = sorted(path.parent.name for path in gpu.ROOM.glob("*/gpu.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_120")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("n", SIZES)
def test_a_kernel_is_its_naive_twin(host: Host, name: str, n: int) -> None:
    CHECKS[name](On(host), n)


@pytest.mark.parametrize(("features", "inner"), [(1, 1), (23, 6), (3, 19), (70, 150)])
def test_histograms_of_other_shapes_and_of_more_features_than_fit_a_block(host: Host, features: int, inner: int) -> None:
    check_histogram(On(host), 257, features, inner)


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
    ("find", "at = (at + 1) & mask", "at = at < mask ? at + 1 : 1"),
    ("find", "if (keys[at] == h) {", "if (true) {"),
    ("find", "int found = -1;", "int found = 0;"),
    ("assemble", "if (x != x) x = of[0];", ";"),
    ("assemble", "fminf(fmaxf(x, of[1]), of[2])", "fmaxf(x, of[1])"),
    ("assemble", "if (of[3] != 0) ", ""),
    ("assemble", "copysignf(log1pf(fabsf(x)), x)", "log1pf(fabsf(x))"),
    ("assemble", "values + column * 6", "values"),
    ("assemble", "row * wide + source", "row * wide"),
    ("assemble", "raw != raw ?", "false ?"),
    ("assemble", "raw == (float)places[column]", "raw == 0"),
    ("assemble", "hashes[source * n + row]", "hashes[row]"),
    ("assemble", "out[i] = h ?", "out[i] = true ?"),
    ("assemble", "places[column] - 1", "places[column]"),
    ("gather", "starts[0] + (", "("),
    ("gather", "code < (float)rows", "code <= (float)rows"),
    ("gather", "row * wide + first + t", "row * wide + t"),
    ("gather", "i += stride", "i += 2 * stride"),
    ("gather4", "(int)(place % count)", "0"),
    ("gather4", "+ i % width", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line", "other"), BROKEN)
def test_a_broken_line_is_found(tmp_path: Path, name: str, line: str, other: str) -> None:
    broken = Host(tmp_path, (line, other))
    with pytest.raises(AssertionError) as found:  # noqa: PT012 - which size finds it is no matter
        for n in SIZES:
            CHECKS[name](On(broken), n)
        if name == "histogram":
            check_histogram(On(broken), 257, 70, 150)
    assert Path(found.traceback[-1].path).name != "cuda_host.py", "it is not there, or not even compiled"


def test_without_the_first_barrier_counts_are_lost(tmp_path: Path) -> None:
    """Threads that count before others have set the block's memory to zero: not in each run, but in most of a few."""
    without = Host(tmp_path, ("__syncthreads();\n    const long long stride", "const long long stride"), block=64)

    def wrong() -> bool:
        try:
            check_histogram(On(without), 400, 23, 60)
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
    matrix, hashes, plan = assemble_inputs(4)
    filled = np.zeros((4, len(plan.kinds)), np.float32)
    with pytest.raises(TypeError, match="assemble: sources: expected int32 of 1 dimensions, contiguous, got int64 of 1"):
        assemble.assemble(matrix, hashes, *plan._replace(sources=plan.sources.astype(np.int64)), filled, host)
    with pytest.raises(ValueError, match="assemble: hashes: expected 4, got 3"):
        assemble.assemble(matrix, np.ascontiguousarray(hashes[:, :3]), *plan, filled, host)
    with pytest.raises(ValueError, match="assemble: places: expected 11, got 10"):
        assemble.assemble(matrix, hashes, *plan._replace(places=plan.places[:10]), filled, host)
    with pytest.raises(ValueError, match="assemble: width: expected 6, got 5"):
        assemble.assemble(matrix, hashes, *plan._replace(values=plan.values[:, :5].copy()), filled, host)
    matrix, tables, starts = gather_inputs(4, 8)
    taken = np.zeros((4, 3, 8), np.float32)
    with pytest.raises(TypeError, match="gather: starts: expected int64 of 1 dimensions, contiguous, got int32 of 1"):
        gather.gather(matrix, 1, tables, starts.astype(np.int32), taken, host)
    with pytest.raises(ValueError, match="gather: tables: expected 8, got 4"):
        gather.gather(matrix, 1, tables[:, :4].copy(), starts, taken, host)
    with pytest.raises(ValueError, match="gather: starts: expected 4, got 3"):
        gather.gather(matrix, 1, tables, starts[:3], taken, host)
    for first in (-1, 3):
        with pytest.raises(ValueError, match=f"gather: first: expected 3 columns of 5 from it on, got {first}"):
            gather.gather(matrix, first, tables, starts, taken, host)


def test_every_source_has_a_check_and_every_kernel_is_launched(host: Host) -> None:
    launched: set[tuple[str, str]] = set()

    def noted(package: str, name: str, grid: tuple[int, ...], block: int, shared: int, args: Sequence[Any]) -> None:
        launched.add((package, name))
        host(package, name, grid, block, shared, args)

    for check in CHECKS.values():
        check(On(noted), 7)
    assert PACKAGES == ["assemble", "gather", "hashing", "histogram", "table"]
    kernels = {package: re.findall(r'"C" __global__ void (\w+)', gpu.source(package)) for package in PACKAGES}
    assert launched == {(package, name) for package, names in kernels.items() for name in names}
    assert {name for name, _, _ in BROKEN} == set(CHECKS)
