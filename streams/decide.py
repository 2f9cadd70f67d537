"""From gathered rows to decisions, a batch at a time: stored features, derived columns, matrix, scores, policy.

`Deciding` is what the steps after the gather need, opened once per worker. Its methods are the steps, in order; what goes
from one to the next is a `Work`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.expressions import Expression
from features.stored import StoredFeatures
from features.streaming import microseconds
from models.engine import Engine
from models.policy import Policy
from models.spec import assemble

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Work:
    """Rows of one batch on their way: `origins` is (partition, rows) in order, `flags` are masks by name."""

    origins: tuple[tuple[str, int], ...]
    batch: pa.RecordBatch
    flags: dict[str, Mask] = field(default_factory=dict)
    matrix: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    scores: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def split(self, batch: pa.RecordBatch) -> list[tuple[str, pa.RecordBatch]]:
        """A batch with the same rows, cut by partition."""
        edges = np.cumsum([0, *(rows for _, rows in self.origins)])
        return [(name, batch.slice(start, rows)) for (name, rows), start in zip(self.origins, edges, strict=False)]


def together(gathered: Sequence[tuple[str, pa.RecordBatch]]) -> Work:
    """Everything queued on the worker as one batch."""
    origins = tuple((name, batch.num_rows) for name, batch in gathered)
    batches = [batch for _, batch in gathered]
    return Work(origins, batches[0] if len(batches) == 1 else pa.concat_batches(batches))


@dataclass(frozen=True)
class Names:
    """What a decision says of where it comes from."""

    pipeline: str
    topic: str
    time: str
    id: str
    schema_version: int
    model: str
    model_version: int


@dataclass(frozen=True)
class Deciding:
    """The steps between gather and sink."""

    names: Names
    entities: tuple[str, ...]
    derived: tuple[tuple[str, Expression], ...]
    stored: StoredFeatures | None
    engine: Engine
    policy: Policy
    clock_ns: Callable[[], int]

    def complete(self, work: Work) -> Work:
        """Adds the stored and the derived features, and flags for what is missing, stale, or later than the event."""
        flags = {f"no_entity:{name}": _nulls(work.batch[name]) for name in self.entities}
        columns = dict(zip(work.batch.schema.names, work.batch.columns, strict=True))
        if self.stored is not None:
            read = self.stored.read(work.batch, microseconds(work.batch[self.names.time]))
            columns |= read.columns
            flags |= read.flags
        columns |= {name: expression(work.batch) for name, expression in self.derived}
        return replace(work, batch=pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), flags=flags)

    def score(self, work: Work) -> Work:
        """Assembles the matrix and scores it."""
        matrix, unknown = assemble(work.batch, self.engine.spec)
        flags = work.flags | {f"unknown:{name}": mask for name, mask in unknown.items()}
        return replace(work, matrix=matrix, flags=flags, scores=self.engine.infer(matrix))

    def decide(self, work: Work) -> pa.RecordBatch:
        """The decisions, as sinks/messages.py describes their columns, with every feature beside them."""
        batch, n = work.batch, work.batch.num_rows
        decided = self.policy(batch, work.scores)
        failed = np.isnan(work.scores)
        flags = work.flags | {"fallback": failed}
        prefix = f"{self.names.pipeline}/{self.names.topic}/"
        position = [pc.cast(batch[name], pa.string()) for name in ("_partition", "_offset")]
        columns = {
            "_key": batch["_key"],
            "decision_id": pc.binary_join_element_wise(prefix, pc.binary_join_element_wise(*position, "/"), ""),
            "event_id": batch[self.names.id],
            "decision": decided.decision,
            "score": pa.array(work.scores, mask=failed),
            "reasons": decided.reasons,
            "model": _constant(self.names.model, n),
            "model_version": pa.array(np.full(n, self.names.model_version, np.int32)),
            "flags": flag_lists(flags, n),
            "event_time": batch[self.names.time],
            "decided_at": pa.array(np.full(n, self.clock_ns() // 1000, np.int64)).cast(pa.timestamp("us", "UTC")),
            "schema_version": pa.array(np.full(n, self.names.schema_version, np.int32)),
        }
        for name in batch.schema.names:
            columns.setdefault(name, batch[name])
        return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def flag_lists(flags: dict[str, Mask], n: int) -> pa.Array:
    """Masks bool [n] by name as one list<string> column: the names of those that are set, in order."""
    raised = {name: mask for name, mask in flags.items() if mask.any()}
    if len(raised) > 63:
        raise ValueError(f"expected at most 63 different flags in a batch, got {len(raised)}")
    bits = np.zeros(n, np.int64)
    for k, mask in enumerate(raised.values()):
        bits |= mask.astype(np.int64) << k
    combinations, codes = np.unique(bits, return_inverse=True)
    lists = [[name for k, name in enumerate(raised) if combination >> k & 1] for combination in combinations.tolist()]
    return pa.array(lists, pa.list_(pa.string())).take(pa.array(codes))


def _nulls(column: pa.Array) -> Mask:
    return np.zeros(len(column), np.bool_) if column.null_count == 0 else column.is_null().to_numpy(zero_copy_only=False)


def _constant(value: str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), pa.array([value]))
