"""The stand of `bench.engines` for kernels: each with its naive twin, on the same input, at the size of a large batch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from bench.features_avro import NEWER, OLDER, PAYMENT, messages_of
from bench.windows import GROUP, MINUTE, START, WINDOW
from features.rows import Fetched, Rows
from features.schema import Integer, Kind, Number, Schema, Text, Time, Vector
from features.state import State
from features.streaming import Cut
from features.views import View
from kernels.assemble import cpu as assemble
from kernels.assemble import naive as assemble_naive
from kernels.avro import columns as avro
from kernels.avro import naive as avro_naive
from kernels.avro.writer import read_schema
from kernels.feast_values import cpu as feast
from kernels.feast_values import naive as feast_naive
from kernels.flat_json import columns as flat_json
from kernels.flat_json import naive as flat_json_naive
from kernels.gather import cpu as gather
from kernels.gather import naive as gather_naive
from kernels.hashing import naive as hashing_naive
from kernels.hashing.cpu import hash_column
from kernels.histogram import cpu as histogram
from kernels.histogram import naive as histogram_naive
from kernels.json_member import naive as json_member_naive
from kernels.json_member.cpu import with_members
from kernels.json_rows import naive as json_rows_naive
from kernels.json_rows.cpu import Words, Writer
from kernels.keyed_hash import naive as keyed_hash_naive
from kernels.keyed_hash.cpu import KeyedHash
from kernels.last_values import cpu as last_values
from kernels.last_values import naive as last_values_naive
from kernels.local_time import cpu as local_time
from kernels.local_time import naive as local_time_naive
from kernels.stored_rows import naive as stored_rows_naive
from kernels.table import cpu as table
from kernels.table import naive as table_naive
from kernels.windows import naive as windows_naive
from streams.decode import kernel_fields

LINE = 64
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Case:
    """A kernel on `items` of something. moved: the bytes that any implementation reads and writes, whole cache lines where they
    lie here and there. run: all of it. naive: the twin on the first k. agrees: whether what both have returned is the same."""

    kernel: str
    what: str
    items: int
    moved: int
    run: Callable[[], Any]
    naive: Callable[[int], Any]
    agrees: Callable[[Any, Any], bool]


def same(kernels: Any, naives: Any) -> bool:
    """Whether the first of a kernel's values are the twin's, to the bit; NaN is NaN."""
    found, expected = np.asarray(kernels), np.asarray(naives)
    return bool(np.array_equal(found[..., : expected.shape[-1]], expected, equal_nan=found.dtype.kind == "f"))


def texts(n: int, rng: np.random.Generator) -> list[str]:
    """Names of entities, as cards have them."""
    return [f"card-{number:09}" for number in rng.integers(0, 10**9, n).tolist()]


def hashing(n: int, rng: np.random.Generator) -> Case:
    names = texts(n, rng)
    column, encoded = pa.array(names), [name.encode() for name in names]
    return Case(
        "hashing",
        "texts of 14 bytes",
        n,
        n * (14 + 4 + 8),
        lambda: hash_column(column),
        lambda k: np.array([hashing_naive.hash_bytes(one) for one in encoded[:k]], np.uint64),
        same,
    )


def keyed_hash(n: int, rng: np.random.Generator) -> Case:
    names, key = texts(n, rng), b"a key of the stand's own"
    column, encoded, keyed = pa.array(names), [name.encode() for name in names], KeyedHash(key)
    return Case(
        "keyed_hash",
        "texts of 14 bytes",
        n,
        n * (14 + 4 + 36),
        lambda: keyed(column),
        lambda k: [keyed_hash_naive.keyed_hash(key, one) for one in encoded[:k]],
        lambda found, expected: found[: len(expected)].to_pylist() == expected,
    )


def look_up(n: int, rng: np.random.Generator) -> Case:
    known = rng.integers(1, 2**63, 100_000, np.uint64)
    keys, slots = table.new_table(len(known))
    table.insert(keys, slots, known, np.empty(len(known), np.int32), 0)
    twin: dict[int, int] = {}
    table_naive.insert(twin, known.tolist())
    asked = np.where(rng.random(n) < 0.9, rng.choice(known, n), rng.integers(1, 2**63, n, np.uint64))
    out, listed = np.empty(n, np.int32), asked.tolist()

    def run() -> Any:
        table.find(keys, slots, asked, out)
        return out

    return Case(
        "table", "look-ups among 100,000", n, n * (8 + 4 + 2 * LINE), run, lambda k: table_naive.find(twin, listed[:k]), same
    )


def histograms(n: int, rng: np.random.Generator) -> Case:
    features, bins = 20, 20
    matrix = rng.normal(size=(n // features, features)).astype(np.float32)
    edges = np.sort(rng.normal(size=(features, bins - 1)), axis=1).astype(np.float32)

    def counted(count: Any, rows: int) -> Any:
        counts = np.zeros((features, bins + 1), np.int64)
        count(matrix[:rows], edges, counts)
        return counts

    return Case(
        "histogram",
        "values of 20 features, 20 bins",
        matrix.size,
        matrix.nbytes,
        lambda: counted(histogram.histogram, len(matrix)),
        lambda k: counted(histogram_naive.histogram, k // features),
        lambda found, expected: np.array_equal(counted(histogram.histogram, int(expected[0].sum())), expected),
    )


def assembled(n: int, rng: np.random.Generator) -> Case:
    numbers, codes = 23, 20
    matrix = rng.lognormal(size=(n, numbers + 1)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.05] = np.nan
    matrix[:, numbers] = rng.integers(0, codes, n)
    hashes = rng.integers(1, 2**63, (2, n), np.uint64)
    columns = [
        *(assemble.Column(assemble.NUMBER, k, 0, (1.0, 0.0, 20.0, k % 2, 1.0, 1.5)) for k in range(numbers)),
        *(assemble.Column(assemble.MISSING, k) for k in range(numbers)),
        *(assemble.Column(assemble.ONE_HOT, numbers, code) for code in range(codes)),
        *(assemble.Column(assemble.BUCKET, k, 10_000) for k in range(2)),
    ]
    plan, out = assemble.plan(columns), np.empty((n, len(columns)), np.float32)
    assemble.check(plan, numbers + 1, 2)

    def run() -> Any:
        assemble.assemble(matrix, hashes, *plan, out)
        return out

    def naive(k: int) -> Any:
        rows = np.empty((k, len(columns)), np.float32)
        assemble_naive.assemble(matrix[:k], hashes[:, :k], *plan, rows)
        return rows

    return Case(
        "assemble",
        f"rows of {len(columns)} columns for a network",
        n,
        matrix.nbytes + hashes.nbytes + out.nbytes,
        run,
        naive,
        lambda found, expected: np.allclose(found[: len(expected)], expected, rtol=1e-5, atol=1e-6),
    )


def gathered(n: int, rng: np.random.Generator) -> Case:
    count, known, width = 26, 1000, 32
    tables, starts = rng.normal(size=(count * known, width)).astype(np.float32), np.arange(count + 1) * known
    matrix = rng.integers(0, known, (n, count)).astype(np.float32)
    out = np.empty((n, count, width), np.float32)

    def run() -> Any:
        gather.gather(matrix, 0, tables, starts, out)
        return out

    def naive(k: int) -> Any:
        rows = np.empty((k, count, width), np.float32)
        gather_naive.gather(matrix[:k], 0, tables, starts, rows)
        return rows

    return Case(
        "gather",
        "rows of 26 codes to embeddings of 32 floats",
        n,
        matrix.nbytes + 2 * out.nbytes,
        run,
        naive,
        lambda found, expected: np.array_equal(found[: len(expected)], expected),
    )


def local_times(n: int, rng: np.random.Generator) -> Case:
    since = START // 1_000_000 + np.arange(-4, 4) * 15_000_000
    moved = np.array([-18_000, -14_400] * 4)
    times, out = np.sort(rng.integers(since[0], since[-1], n)), np.empty(n, np.int64)
    listed = times.tolist(), since.tolist(), moved.tolist()

    def run() -> Any:
        local_time.parts(times, since, moved, 3600, 0, 24, out)
        return out

    return Case(
        "local_time",
        "hours of times in order",
        n,
        n * 16,
        run,
        lambda k: local_time_naive.parts(listed[0][:k], *listed[1:], 3600, 0, 24),
        same,
    )


def last(n: int, rng: np.random.Generator) -> Case:
    entities = 10_000
    slots = rng.integers(0, entities, n).astype(np.int32)
    times = np.arange(n) * 1000
    values = rng.normal(size=(1, n))
    bits, out = np.full(n, 3, np.uint32), np.empty((1, n))
    events = [
        last_values_naive.Event(*each, True) for each in zip(slots.tolist(), times.tolist(), values[0].tolist(), strict=True)
    ]

    def run() -> Any:
        seen_at, seen = np.full((entities, 1), last_values.NEVER), np.full((entities, 1), np.nan)
        last_values.last(slots, times, values, np.zeros(1, np.int64), bits, 0, 10 * MINUTE, seen_at, seen, out)
        return out[0]

    return Case(
        "last_values",
        "events of 10,000 entities",
        n,
        n * (4 + 8 + 8 + 4 + 8 + 2 * LINE),
        run,
        lambda k: last_values_naive.last(events[:k], 10 * MINUTE),
        same,
    )


def sliding(n: int, rng: np.random.Generator) -> Case:
    entities = 100
    which, times, amounts = rng.integers(0, entities, n), START + np.arange(n) * 1000, rng.integers(1, 1000, n).astype(float)
    bits, nothing = np.full(n, 3, np.uint32), np.empty((0, n), np.int64)
    hashes = rng.integers(1, 2**63, entities, np.uint64)[which]
    cut = Cut(np.arange(n, dtype=np.int32), hashes, times, bits, amounts[None, :], nothing)
    listed = zip(which.tolist(), times.tolist(), amounts.tolist(), strict=True)
    events = [windows_naive.Event(*each, True) for each in listed]

    def naive(k: int) -> Any:
        seen, _, _ = windows_naive.window(events[:k], 120 * MINUTE, MINUTE)
        return np.array([[windows_naive.AGGREGATES[name](each) for each in seen] for name in WINDOW.aggs])

    return Case(
        "windows",
        "events of 100 entities, three aggregates of 2 h",
        n,
        n * (8 + 8 + 4 + 8 + 3 * 8 + 3 * LINE),
        lambda: State(GROUP).update(cut),
        naive,
        lambda found, expected: np.allclose(found[:, : expected.shape[1]], expected, equal_nan=True),
    )


def stored(n: int, rng: np.random.Generator) -> Case:
    width, entities, now = 10, 10_000, START
    view = View("v", ("card",), ("card",), (None,), tuple(f"f{k}" for k in range(width)), 0, None)
    known = rng.integers(1, 2**63, entities, np.uint64)
    values = rng.normal(size=(width, entities)).astype(np.float32)
    fetched = Fetched(values, np.full(entities, START - MINUTE))
    rows = Rows([view], [(0,)], [False], [60 * MINUTE], entities)
    rows.put(0, known, [b"x"] * entities, fetched, now)
    which = rng.integers(0, entities, n)
    hashes, times, fill = known[which][None, :], np.full(n, START), np.zeros(width, np.float32)
    held = [stored_rows_naive.Row(column, START - MINUTE, now + 60 * MINUTE) for column in values.T.astype(np.float64).tolist()]
    listed = which.tolist()

    def naive(k: int) -> Any:
        options: dict[str, Any] = {"ttl": 0, "fill": [0.0] * width, "refuses": False, "wall": False}
        return np.array([stored_rows_naive.give(held[row], True, START, now, **options).values for row in listed[:k]]).T

    return Case(
        "stored_rows",
        "events that get 10 features each",
        n,
        n * (8 + 8 + 4 * width + 16 + 3 * LINE),
        lambda: rows.read(hashes, fill, times, now, False).values,
        naive,
        lambda found, expected: same(found, expected.astype(np.float32)),
    )


def feast_values(n: int, rng: np.random.Generator) -> Case:
    cells = [b"\x29" + number.tobytes() for number in rng.normal(size=n // 10 * 10)]  # a double_val
    stamp = b"$6\r\n\x08\x80\xe2\xcf\xaa\x06\r\n"  # the second 1,700,000,000
    answers = [
        b"*11\r\n" + b"".join(b"$9\r\n%b\r\n" % cell for cell in cells[at : at + 10]) + stamp for at in range(0, len(cells), 10)
    ]
    data = np.frombuffer(b"".join(answers), np.uint8)
    found, when = np.empty((10, len(answers)), np.float32), np.empty(len(answers), np.int64)

    def run() -> Any:
        _, rows, state = feast.replies(data, 0, len(data), 0, found, when)
        assert (rows, state) == (len(answers), feast.READ)
        return found.T.ravel()

    return Case(
        "feast_values",
        "values in answers of Redis",
        len(cells),
        len(data) + len(cells) * 4,
        run,
        lambda k: np.array([feast_naive.number(cell) for cell in cells[:k]]).astype(np.float32),
        same,
    )


EVENT = Schema(
    "Event",
    1,
    {
        "kind": Kind(("payment", "report")),
        "at": Time(),
        "payment_id": Integer(low=0),
        "card": Text(),
        "merchant": Text(),
        "amount": Number(low=0),
        "lat": Number(low=-90, high=90),
        "lon": Number(low=-180, high=180),
    },
)
POINT = Schema("Point", 1, {"id": Integer(), "x": Vector(64, low=0, high=1)})


def read_json(n: int, rng: np.random.Generator) -> Case:
    amounts, places = rng.integers(1, 10**6, n).tolist(), rng.integers(-900_000, 900_000, (2, n)).tolist()
    messages = [
        f'{{"kind":"payment","at":"2026-01-31T08:{i // 60_000 % 60:02}:{i // 1000 % 60:02}.{i % 1000:03}Z","payment_id":{i},'
        f'"card":"{card}","merchant":"m-{i % 977:04}","amount":{amounts[i] / 100},"lat":{places[0][i] / 1e4},'
        f'"lon":{places[1][i] / 1e4}}}'.encode()
        for i, card in enumerate(texts(n, rng))
    ]
    return reading("flat_json", "messages of 8 fields", EVENT, messages)


def read_vectors(n: int, rng: np.random.Generator) -> Case:
    numbers = rng.integers(0, 10_000, (n, 64)) / 10_000
    messages = [
        f'{{"id":{i},"x":[{",".join(f"{number:.4f}" for number in row)}]}}'.encode() for i, row in enumerate(numbers.tolist())
    ]
    return reading("float_list", "messages with a list of 64 numbers", POINT, messages)


def reading(kernel: str, what: str, schema: Schema, messages: Sequence[bytes]) -> Case:
    """Messages in JSON, read by a schema."""
    fields, column = kernel_fields(schema), pa.array(messages, pa.binary())
    reader = flat_json.Reader(fields, MAX_BYTES)
    return Case(
        kernel,
        what,
        len(messages),
        2 * column.nbytes,
        lambda: reader.read(column),
        lambda k: [flat_json_naive.parse(message, fields, MAX_BYTES) for message in messages[:k]],
        agreeing,
    )


def read_avro(n: int, rng: np.random.Generator) -> Case:
    told = [json.dumps(one) for one in (OLDER, NEWER)]
    messages = messages_of(n, [fastavro.parse_schema(json.loads(one)) for one in told])
    types = [read_schema(one) for one in told]
    fields, column = kernel_fields(PAYMENT), pa.array(messages, pa.binary())
    reader = avro.Reader(fields, MAX_BYTES, types.__getitem__)
    return Case(
        "avro",
        "messages of 12 fields",
        n,
        2 * column.nbytes,
        lambda: reader.read(column),
        lambda k: [avro_naive.parse(message, fields, MAX_BYTES, types.__getitem__) for message in messages[:k]],
        agreeing,
    )


def agreeing(found: Any, expected: Any) -> bool:
    """Whether columns are the definition's rows."""
    columns = []
    for column in found.values:
        short = column[: len(expected)]
        short = short.indices if pa.types.is_dictionary(short.type) else short
        short = short.cast(pa.int64()) if pa.types.is_timestamp(short.type) else short
        columns.append(short.to_pylist())
    return not found.faults and [list(row) for row in zip(*columns, strict=True)] == [list(row) for row in expected]


def write_json(n: int, rng: np.random.Generator) -> Case:
    names, codes = texts(n, rng), rng.integers(0, 3, n)
    times, whole = START + np.arange(n) * 1000, rng.integers(0, 10**9, n)
    words = ["approve", "review", "decline"]
    pieces: list[tuple[str, Any]] = [
        ("constant", '{"id":'), ("quoted", names), ("constant", ',"decision":"'), ("word", (words, codes.tolist())),
        ("constant", '","at":'), ("time", times.tolist()), ("constant", ',"offset":'), ("integer", whole.tolist()),
        ("constant", "}"),
    ]  # fmt: skip
    writer = Writer(
        ['{"id":', ("quoted",), ',"decision":"', Words(words), '","at":', ("time",), ',"offset":', ("integer",), "}"]
    )
    columns = [pa.array(names), codes.astype(np.int8), times, whole]
    return Case(
        "json_rows",
        "decisions",
        n,
        n * (14 + 4 + 1 + 8 + 8 + 100),
        lambda: writer.rows(columns, n),
        lambda k: json_rows_naive.rows(pieces, k),
        lambda found, expected: found[: len(expected)] == expected,
    )


def set_member(n: int, rng: np.random.Generator) -> Case:
    messages = [f'{{"id":{i},"name":"{name}","score":null}}'.encode() for i, name in enumerate(texts(n, rng))]
    numbers = [f"{score:.4f}" for score in rng.random(n)]
    column, scores = pa.array(messages, pa.binary()), pa.array(numbers)
    return Case(
        "json_member",
        "messages that get their score",
        n,
        2 * column.nbytes,
        lambda: with_members(column, "score", scores),
        lambda k: [json_member_naive.with_member(messages[i], "score", [numbers[i]]) for i in range(k)],
        lambda found, expected: list(found[: len(expected)]) == expected,
    )


CASES: tuple[tuple[Callable[[int, np.random.Generator], Case], int], ...] = (
    (hashing, 100_000),
    (keyed_hash, 20_000),
    (look_up, 100_000),
    (histograms, 400_000),
    (assembled, 20_000),
    (gathered, 20_000),
    (local_times, 100_000),
    (last, 100_000),
    (sliding, 50_000),
    (stored, 20_000),
    (feast_values, 100_000),
    (read_json, 10_000),
    (read_vectors, 2_000),
    (read_avro, 10_000),
    (write_json, 10_000),
    (set_member, 20_000),
)
"""What makes each case, and of how many items."""
