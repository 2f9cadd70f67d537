"""The rows by joining strings: the definition."""

import json
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import cast

import numpy as np

EPOCH = datetime(1970, 1, 1)


def rows(pieces: Sequence[tuple[str, object]], n: int) -> list[bytes]:
    """Each of n rows is its pieces in order: ("constant", text), or a kind with a list of n values.

    text: as it is. quoted: a JSON string of a text. integer: in decimal. time: microseconds since 1970-01-01 UTC as a JSON
    string YYYY-MM-DDTHH:MM:SS.ffffffZ, in the years 1 to 9999. word: (texts, codes [n]), the text of each row's code. Of a
    float32 there may be several shortest texts: `same_float` says whether one is right.
    """
    return ["".join(_text(kind, value, row) for kind, value in pieces).encode() for row in range(n)]


def same_float(text: str, value: float) -> bool:
    """Whether text is JSON that reads back as this float32, with no more digits than needed (null: not finite)."""
    if not math.isfinite(value):
        return text == "null"
    digits = text.lstrip("-").partition("e")[0].replace(".", "").strip("0")
    shortest = str(np.float32(value)).lstrip("-").partition("e")[0].replace(".", "").strip("0")
    return np.float32(json.loads(text)) == np.float32(value) and len(digits) <= len(shortest)


def _text(kind: str, value: object, row: int) -> str:
    if kind == "constant":
        return str(value)
    if kind == "word":
        texts, codes = cast(tuple[list[str], list[int]], value)
        return texts[codes[row]]
    item = value[row]  # type: ignore[index]
    if kind == "quoted":
        return json.dumps(item, ensure_ascii=False)
    if kind == "time":
        return f'"{(EPOCH + timedelta(microseconds=item)).isoformat(timespec="microseconds")}Z"'
    return str(item)
