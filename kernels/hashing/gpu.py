"""The hash on a GPU. kernels/hashing/naive.py is the definition."""

from typing import Any

import numpy as np

from kernels.gpu import Launch, blocks, checked, launch, sized

BLOCK = 256
ALL = np.uint64(0)
"""In the place of `valid`: the null pointer."""


def hash_strings(offsets: Any, data: Any, valid: Any | None, out: Any, launch: Launch = launch) -> None:
    """Hashes n strings: offsets int32 [n + 1] into data uint8, valid bool [n] (None: all); fills out uint64 [n], 0 where not.

    Arrays of the device; what `offsets` says is trusted. Raises TypeError for others, and ValueError for other sizes.
    """
    checked("hash_strings", offsets=(offsets, np.int32, 1), data=(data, np.uint8, 1), out=(out, np.uint64, 1))
    sized("hash_strings", offsets=(len(offsets), len(out) + 1))
    _launch(launch, "hash_strings", len(out), offsets, data, _valid("hash_strings", valid, len(out)), out)


def hash_integers(values: Any, valid: Any | None, out: Any, launch: Launch = launch) -> None:
    """Hashes int64 [n]; the rest as for strings."""
    checked("hash_integers", values=(values, np.int64, 1), out=(out, np.uint64, 1))
    sized("hash_integers", values=(len(values), len(out)))
    _launch(launch, "hash_integers", len(out), values, _valid("hash_integers", valid, len(out)), out)


def combine(first: Any, second: Any, out: Any, launch: Launch = launch) -> None:
    """Joins two hashes uint64 [n] into out [n]; 0 where either is 0."""
    checked("combine", first=(first, np.uint64, 1), second=(second, np.uint64, 1), out=(out, np.uint64, 1))
    sized("combine", first=(len(first), len(out)), second=(len(second), len(out)))
    _launch(launch, "combine", len(out), first, second, out)


def _valid(where: str, valid: Any | None, n: int) -> Any:
    if valid is None:
        return ALL
    checked(where, valid=(valid, np.bool_, 1))
    sized(where, valid=(len(valid), n))
    return valid


def _launch(launch: Launch, name: str, n: int, *arrays: Any) -> None:
    launch("hashing", name, (blocks(n, BLOCK),), BLOCK, 0, (*arrays, np.int64(n)))
