"""What a network takes, one element at a time: the definition."""

import math

import numpy as np

from kernels.assemble.cpu import BUCKET, F32, I32, MISSING, NUMBER, U64


def assemble(matrix: F32, hashes: U64, kinds: I32, sources: I32, places: I32, values: F32, out: F32) -> None:
    """Fills out float32 [n, P] from matrix float32 [n, K], NaN for missing, and hashes uint64 [H, n], 0 for null, by a plan of
    kernels/assemble/cpu.py.

    NUMBER: see `number`. MISSING: 1 for NaN, else 0. ONE_HOT: 1 for the code that is the place, else 0. BUCKET: 0 for null,
    else 1 + hash % (place - 1): one of `place` in all.
    """
    for i in range(len(out)):
        for p in range(len(kinds)):
            kind, source, place = int(kinds[p]), int(sources[p]), int(places[p])
            if kind == BUCKET:
                h = int(hashes[source, i])
                out[i, p] = 1 + h % (place - 1) if h else 0
            elif kind == NUMBER:
                out[i, p] = number(matrix[i, source], values[p])
            elif kind == MISSING:
                out[i, p] = np.isnan(matrix[i, source])
            else:
                out[i, p] = matrix[i, source] == place


def number(x: np.float32, values: F32) -> np.float32:
    """(y - mean) / scale in float32, where y is x, or fill for NaN, clipped to [low, high], and sign(y) ln(1 + |y|) with log.

    values: float32 [6], in the order of kernels/assemble/cpu.py.
    """
    fill, low, high, log, mean, scale = values
    y = fill if np.isnan(x) else x
    y = low if y < low else high if y > high else y
    if log:
        y = np.float32(math.copysign(math.log1p(abs(y)), y))
    return (y - mean) / scale
