"""Other messages than decisions: what a model says, written as the reader of the topic wants it, without Python per row.

Decisions("scores", encode=Scores())                                     {"id":7,"score":0.25}
Decisions("completed", encode=Echo("prediction"))                        the event, with "prediction":"0.25,0.5,"
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kernels.json_member.cpu import with_members
from sinks.messages import Column, Encoder, Messages

F32 = npt.NDArray[np.float32]


class Encode(Protocol):
    """Makes the messages of a topic out of a batch and its scores. One call at a time, on the dataflow's thread."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns of an event that it reads beside `_key`: fields of the schema, and `_value`, the message itself."""

    def __call__(self, batch: pa.RecordBatch, scores: F32, topic: str) -> Messages:
        """n messages, one for each row and in their order.

        batch: n rows with at least `_key` and `columns`; scores: float32 [n], or [n, k] of a model with k outputs, NaN where
        there is none. What it raises stops the job.
        """


@dataclass(frozen=True)
class Scores:
    """A JSON object of the event's id and its score, null where there is none; or of the list "scores", for several outputs."""

    id: str = "id"
    _encoder: Encoder = field(default_factory=Encoder, repr=False, compare=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.id,)

    def __call__(self, batch: pa.RecordBatch, scores: F32, topic: str) -> Messages:
        said: tuple[str, Column] = ("score", scores)
        if scores.ndim == 2:
            flat = pa.array(np.ascontiguousarray(scores).ravel())
            said = "scores", pa.FixedSizeListArray.from_arrays(flat, scores.shape[1])
        fields: list[tuple[str, Column]] = [(self.id, batch.column(self.id)), said]
        return Messages(topic, batch.column("_key").to_pylist(), self._encoder.objects(fields, batch.num_rows))


@dataclass(frozen=True)
class Echo:
    """The event's own bytes with one member set to the scores as a string, each followed by a comma: "0.25,0.5,".

    That is fast where the member is the object's last one and null. Where there is none of the name it is added at the end.
    """

    member: str

    @property
    def columns(self) -> tuple[str, ...]:
        return ("_value",)

    def __call__(self, batch: pa.RecordBatch, scores: F32, topic: str) -> Messages:
        texts = pc.cast(pa.array(np.ascontiguousarray(scores).ravel()), pa.string())
        values = with_members(batch.column("_value"), self.member, texts)
        return Messages(topic, batch.column("_key").to_pylist(), values)
