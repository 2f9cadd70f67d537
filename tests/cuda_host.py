"""Kernels' CUDA C++ compiled for the host (cuda_host.h) and run there, in the place of a launch on a device."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.gpu import source

SHIM = Path(__file__).with_name("cuda_host.h")


def compiler() -> str:
    """The C++ compiler; skips the test, and says so, where there is none."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("NOT PROVEN: no C++ compiler (g++) to run the GPU kernels' source on the host")
    return found


class Host:
    """Launches kernels of CUDA C++ on the host. change: (old, new) of a line to break."""

    def __init__(self, folder: Path, change: tuple[str, str] | None = None, block: int = 32, blocks: int = 3) -> None:
        """block, blocks: threads and blocks at most: a host's threads are dear."""
        self._folder, self._change, self._block, self._blocks = folder, change, block, blocks
        self._libraries: dict[str, ctypes.CDLL] = {}

    def __call__(self, package: str, name: str, grid: tuple[int, ...], block: int, shared: int, args: Sequence[Any]) -> None:
        values = [_value(each) for each in args]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(each) for each in values))
        launch = getattr(self._library(package), f"launch_{name}")
        launch(min(grid[0], self._blocks), min(block, self._block), ctypes.c_size_t(shared), pointers)

    def _library(self, package: str) -> ctypes.CDLL:
        if package not in self._libraries:
            code = source(package)
            if self._change:
                assert code.count(self._change[0]) == 1, self._change
                code = code.replace(*self._change)
            names = re.findall(r'extern "C" __global__ void (\w+)\(', code)
            launchers = [
                f'extern "C" void launch_{name}(unsigned grid, unsigned block, std::size_t shared, void** given)'
                f" {{ launch({name}, grid, block, shared, given); }}"
                for name in names
            ]
            file, made = self._folder / f"{package}.cpp", self._folder / f"{package}.so"
            file.write_text("\n".join([f'#include "{SHIM}"', code, *launchers]))
            command = [compiler(), "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-o", str(made), str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            self._libraries[package] = ctypes.CDLL(str(made))
        return self._libraries[package]


def _value(given: Any) -> Any:
    if isinstance(given, np.ndarray):
        return ctypes.c_void_p(given.ctypes.data)
    return {np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.uint64: ctypes.c_uint64}[type(given)](int(given))
