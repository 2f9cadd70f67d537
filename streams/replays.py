"""Messages that were sent again: a dead letter, corrected, is a new message of the topic that is decided on under its old name.

On Kafka a header says so. Reading every message's headers would cost more than the rest of a poll where a producer sends some
(1.6 µs a message), so a replay's time stamp says that it may be one: its lowest bits are MARK, as are those of one message in
a thousand. In a raw batch with a replay, and in what is made of it, a column `_original` beside `_offset` has the offset of the
message that each row stands for, of the same partition; where nothing is replayed there is no such column.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message

from streams.decode import Decoded, Decoder

HEADER = "headrace-replays"
ORIGINAL = "_original"
MARK, BITS = np.int64(777), np.int64(1023)
I64 = npt.NDArray[np.int64]


def marked(now_ms: int) -> int:
    """The time stamp (ms) of a replay that is sent now: at most a second ago."""
    at = int(now_ms & ~BITS | MARK)
    return at if at <= now_ms else at - int(BITS) - 1


def header_of(topic: str, partition: int, offset: int) -> tuple[str, bytes]:
    """The header of a message that is sent again for the one at this position."""
    return HEADER, f"{topic}/{partition}/{offset}".encode()


def replayed(messages: Sequence[Message], stamps: I64) -> dict[int, int]:
    """Which of these messages are replays: index → the offset that they stand for. stamps: int64 [n], their time stamps (ms).

    A header that names another topic or partition, or no earlier message, says nothing: the message stands for itself.
    """
    if not len(messages):
        return {}
    suspects: Sequence[int] = range(len(messages))
    if TIMESTAMP_LOG_APPEND_TIME not in (messages[0].timestamp()[0], messages[-1].timestamp()[0]):
        may_be = stamps & BITS == MARK
        suspects = np.flatnonzero(may_be).tolist() if np.count_nonzero(may_be) else ()
    return {index: found for index in suspects if (found := _stands_for(messages[index])) is not None}


def _stands_for(message: Message) -> int | None:
    for name, value in message.headers() or ():
        if name == HEADER and isinstance(value, bytes):
            place, _, offset = value.decode(errors="replace").rpartition("/")
            here = f"{message.topic()}/{message.partition()}"
            if place == here and offset.isascii() and offset.isdigit() and int(offset) < message.offset():
                return int(offset)
    return None


def originals(batch: pa.RecordBatch) -> pa.Array:
    """The offset that each row's decision or dead letter is named by, int64 [n]."""
    return batch.column(ORIGINAL if has_replays(batch) else "_offset")


def has_replays(batch: pa.RecordBatch) -> bool:
    """Whether a batch has the column."""
    return batch.schema.get_field_index(ORIGINAL) >= 0


def kept_too(names: Sequence[str], batch: pa.RecordBatch) -> Sequence[str]:
    """The names of columns, with `_original` where the batch has it."""
    return [*names, ORIGINAL] if has_replays(batch) else names


def own(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that are no replays."""
    return batch.filter(pc.equal(batch.column(ORIGINAL), batch.column("_offset"))) if has_replays(batch) else batch


def alike(batches: Sequence[pa.RecordBatch]) -> Sequence[pa.RecordBatch]:
    """The batches, all with the column where one has it."""
    if not any(map(has_replays, batches)):
        return batches
    names = [name for name in batches[0].schema.names if name != ORIGINAL]
    return [batch.select(names).append_column(ORIGINAL, originals(batch)) for batch in batches]


def naming_originals(decoder: Decoder) -> Decoder:
    """The decoder, any decoder, for raw batches with replays too: reasons and seals are those of the original positions."""

    def decode(batch: pa.RecordBatch) -> Decoded:
        if not has_replays(batch):
            return decoder(batch)
        place, polled = batch.schema.get_field_index("_offset"), batch.schema.get_field_index("_polled_at")
        original, first = batch.column(ORIGINAL), int(batch.column("_polled_at")[0].as_py())
        named = batch.drop_columns([ORIGINAL]).set_column(place, "_offset", original)
        numbered = named.set_column(polled, "_polled_at", pa.array(first + np.arange(batch.num_rows)))
        decoded = decoder(numbered)
        return Decoded(_placed(decoded.rows, batch, first), _placed(decoded.dead, batch, first))

    def _placed(rows: pa.RecordBatch, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        numbers = pa.array(rows.column("_polled_at").to_numpy() - first)
        for name in ("_offset", "_polled_at"):
            rows = rows.set_column(rows.schema.get_field_index(name), name, batch.column(name).take(numbers))
        return rows.append_column(ORIGINAL, batch.column(ORIGINAL).take(numbers))

    return decode
