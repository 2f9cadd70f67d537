"""Made-up card numbers, events that hold them, whole and broken in every way, and a search for them in all that was written."""

import base64
import json
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from payments import Payment, payments

from features.schema import Integer, Schema, Text
from features.spec import Last, Window
from streams.pipeline import Pipeline, Record

Card = Schema(
    "Payment",
    version=3,
    fields=dict(Payment.fields) | {"card": Text(max_bytes=19, secret=True), "payer": Integer(secret=True, optional=True)},
)
PIECE = 12
DAY = "2024-03-05T10:15:00Z"


def luhn(number: str) -> int:
    """The digit that makes the number valid."""
    doubled = [int(digit) * (1 + k % 2) for k, digit in enumerate(reversed(number + "0"))]
    return -sum(n // 10 + n % 10 for n in doubled) % 10


def cards(n: int = 1000, seed: int = 7) -> list[str]:
    """n different card numbers of 16 digits with a right last digit, of a range that nobody issues."""
    rng = np.random.default_rng(seed)
    firsts = [f"49{number:013d}" for number in rng.choice(10**13, n, replace=False)]
    return [first + str(luhn(first)) for first in firsts]


def secret_payments(**topic: Any) -> Pipeline:
    """The payments with windows over the secret card, and a record."""
    like = payments(**topic)
    features = [
        *like.features[:1],
        Window("card", "amount", over="1h", aggs=("count", "sum", "mean", "min", "max"), where="kind == 'paid'"),
        Last("shop", "amount", within="12h", where="kind == 'refund'"),
    ]
    return replace(like, events=replace(like.events, schema=Card), features=features, record=Record())


def whole(card: str, number: int) -> dict[str, Any]:
    """A good payment with a card."""
    return {"kind": "paid", "at": DAY, "payment": number, "card": card, "payer": int(card), "shop": "s", "amount": 1.5}


def broken(event: dict[str, Any], k: int) -> bytes:
    """The event broken in the k-th way, with its card number still in it."""
    card, text = event["card"], json.dumps(event)
    made: list[Any] = [
        text[:-1],
        text + card,
        json.dumps(card),
        json.dumps([event]),
        event | {"card": card + "0000"},
        event | {"card": int(card)},
        event | {"card": [card]},
        event | {"card": {card: card}},
        event | {"amount": card},
        event | {"amount": int(card)},
        event | {"payment": card},
        event | {"payment": -int(card)},
        event | {"payer": card},
        event | {"payer": int(card) * 10**6},
        event | {"kind": card},
        event | {"at": card},
        event | {"at": f"{card[:4]}-{card[4:6]}-{card}T00:00:00Z"},
        event | {"shop": card * 5},
        {"card": card},
        card,
        f'{{"card": {card}',
        f'{{"{card}": 1}}',
        text.replace('"s"', '"\udcff"'.encode("utf-8", "surrogateescape").decode("latin-1")).replace('"s"', f'"{card}'),
    ]
    one = made[k % len(made)]
    raw = one.encode() if isinstance(one, str) else json.dumps(one).encode()
    return raw + b"\xff" if k % 5 == 4 and isinstance(one, str) else raw


class Search:
    """Looks for card numbers, or twelve digits of one in a row: as they are, as UTF-16, in hexadecimal digits, in base64, and
    as whole numbers of eight bytes."""

    def __init__(self, numbers: Iterable[str]) -> None:
        self._pieces = {number[k : k + PIECE].encode() for number in numbers for k in range(len(number) - PIECE + 1)}
        self._whole = np.array([int(number) for number in numbers], np.int64)

    def found(self, data: bytes) -> set[str]:
        """What of them is in the data."""
        seen: set[str] = set()
        for view in self._views(data):
            for run in re.findall(rb"[0-9]{12,}", view):
                seen |= {piece.decode() for k in range(len(run)) if (piece := run[k : k + PIECE]) in self._pieces}
        for start in range(min(8, len(data))):
            words = np.frombuffer(data, np.int64, (len(data) - start) // 8, start)
            for order in (words, words.byteswap()):
                seen |= {str(number) for number in order[np.isin(order, self._whole)]}
        return seen

    def _views(self, data: bytes) -> Iterable[bytes]:
        yield data
        yield data.replace(b"\0", b"")
        for run in re.findall(rb"(?:[0-9a-fA-F]{2}){12,}", data):
            yield bytes.fromhex(run.decode())
            yield bytes.fromhex(run[1:-1].decode()) if len(run) % 2 == 0 else b""
        for run in re.findall(rb"[A-Za-z0-9+/]{16,}", data):
            for start in range(4):
                part = run[start : start + (len(run) - start) // 4 * 4]
                yield base64.b64decode(part)


def bytes_under(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name; of Parquet and SQLite what is in them, too."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        found[str(path)] = path.read_bytes()
        if path.suffix == ".parquet":
            found[f"{path} read"] = repr(pq.read_table(path).to_pylist()).encode()
        if found[str(path)].startswith(b"SQLite format 3"):
            found[f"{path} read"] = _cells(path)
    return found


def _cells(path: Path) -> bytes:
    with sqlite3.connect(path) as store:
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for table in tables for row in store.execute(f"SELECT * FROM {table}")]
    return b"\n".join(cell if isinstance(cell, bytes) else str(cell).encode() for row in rows for cell in row)
