"""One list at a time: the definition, and the parser of everything the kernel does not take."""

import re
from collections.abc import Sequence

import numpy as np

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"-?[0-9]+")
SPACES = " \t\r\n"


def parts(text: str) -> list[str]:
    """The texts between the commas of a list, white space around them left out; a comma at the end adds none."""
    found = [part.strip(SPACES) for part in text.split(",")]
    return found if found[-1] else found[:-1]


def number(text: str) -> float | None:
    """The float64 nearest to a number written as in JSON, infinity beyond it; None for any other text. -0 is 0, -0.0 is not."""
    if not NUMBER.fullmatch(text):
        return None
    return float(text) + 0.0 if WHOLE.fullmatch(text) else float(text)


def rounded(numbers: Sequence[float], low: float, high: float) -> list[float] | int:
    """The float32 nearest to each float64, or the place of the first that is not in [low, high] or beyond float32."""
    with np.errstate(over="ignore"):
        single = np.array(numbers, np.float64).astype(np.float32)
    for place, value in enumerate(numbers):
        if not low <= value <= high or not np.isfinite(single[place]):
            return place
    values: list[float] = single.tolist()
    return values
