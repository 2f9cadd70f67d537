"""Kernels in CUDA C++ on a GPU, by CuPy: `PACKAGE/gpu.cu` beside the naive and the CPU twin, and `PACKAGE/gpu.py` calls it.

What a kernel is called with are arrays of the device, C-contiguous; nothing is copied and nothing waits. A caller may give
another `launch`, as tests do that run the same source on the host.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PRELUDE = "#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]\n"
"""What comes before each source: the only thing that is spelled otherwise on a host."""
ROOM = Path(__file__).parent
MOST_BLOCKS = 65_535


class Launch(Protocol):
    """Runs a kernel of a package: grid of blocks, threads of a block, bytes of shared memory, arrays and NumPy scalars."""

    def __call__(
        self, package: str, name: str, grid: tuple[int, ...], block: int, shared: int, args: Sequence[Any]
    ) -> None: ...


def source(package: str) -> str:
    """The CUDA C++ of a package."""
    return (ROOM / package / "gpu.cu").read_text(encoding="utf-8")


@cache
def _module(package: str) -> Any:
    import cupy

    return cupy.RawModule(code=PRELUDE + source(package), options=("--std=c++17",))


def launch(package: str, name: str, grid: tuple[int, ...], block: int, shared: int, args: Sequence[Any]) -> None:
    """On the current device and stream, by CuPy; compiled when a package is first used. Raises ImportError without CuPy."""
    _module(package).get_function(name)(grid, (block,), tuple(args), shared_mem=shared)


def checked(where: str, **arrays: tuple[Any, type[np.generic], int]) -> None:
    """Raises TypeError for an array that is not C-contiguous, or of another dtype or number of dimensions than is said."""
    for name, (array, dtype, ndim) in arrays.items():
        if array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
            kind = f"{array.dtype} of {array.ndim} dimensions{'' if array.flags.c_contiguous else ', not contiguous'}"
            raise TypeError(f"{where}: {name}: expected {np.dtype(dtype)} of {ndim} dimensions, contiguous, got {kind}")


def sized(where: str, **sizes: tuple[int, int]) -> None:
    """Raises ValueError for the first of (got, expected) that differ."""
    for name, (got, expected) in sizes.items():
        if got != expected:
            raise ValueError(f"{where}: {name}: expected {expected}, got {got}")


def address(array: Any) -> int:
    """Where an array begins, on a device or on the host."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def blocks(n: int, block: int) -> int:
    """As many blocks as n threads take, MOST_BLOCKS at most: kernels go on in strides."""
    return max(1, min(MOST_BLOCKS, -(-n // block)))
