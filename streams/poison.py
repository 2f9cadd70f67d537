"""Messages that killed the job, which no step may see again: they become dead letters before they are decoded."""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from streams.decode import DEAD, KEPT_BYTES, PROVENANCE, Decoded, Decoder

CODE = "poison"

Aside = Mapping[tuple[int, int], str]
"""What was seen of a message, by its partition and offset."""


def setting_aside(decoder: Decoder, letters: Callable[[str], Decoder], aside: Aside) -> Decoder:
    """The decoder, but for the messages of `aside`, which it does not see. letters: what makes dead letters of all that it
    gets, given what was seen."""

    def decode(batch: pa.RecordBatch) -> Decoded:
        partition, offset = batch.column("_partition").to_numpy(), batch.column("_offset").to_numpy()
        hits = {place: np.flatnonzero((partition == place[0]) & (offset == place[1])) for place in aside}
        rest = np.ones(batch.num_rows, np.bool_)
        for hit in hits.values():
            rest[hit] = False
        if rest.all():
            return decoder(batch)
        decoded = decoder(batch.filter(pa.array(rest)))
        dead = [letters(aside[place])(batch.take(pa.array(hit))).dead for place, hit in hits.items() if len(hit)]
        return Decoded(decoded.rows, pa.concat_batches([decoded.dead, *dead]))

    return decode


def letters_of(seen: str, decoder: Decoder, step: str, topic: str) -> Decoder:
    """A decoder of messages that are not to be decoded: all are dead letters with code poison. decoder: what it stands for."""

    def decode(batch: pa.RecordBatch) -> Decoded:
        places = zip(batch.column("_partition").to_pylist(), batch.column("_offset").to_pylist(), strict=True)
        values = batch.column("_value").to_pylist()
        expected = f"{step}: expected a message that can be worked on, got {seen}"
        rows = [
            {
                "code": CODE,
                "reason": f"{expected} ({topic}/{partition}@{offset})",
                "value": None if value is None else value[:KEPT_BYTES],
                "size": len(value or b""),
                "sha256": hashlib.sha256(value or b"").hexdigest(),
                "closed": False,
            }
            for (partition, offset), value in zip(places, values, strict=True)
        ]
        made = pa.RecordBatch.from_pylist(rows, pa.schema([field for field in DEAD if field.name not in PROVENANCE.names]))
        dead = pa.RecordBatch.from_arrays([*made.columns, *batch.select(PROVENANCE.names).columns], schema=DEAD)
        return Decoded(decoder(batch.slice(0, 0)).rows, dead)

    return decode
