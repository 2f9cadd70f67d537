"""From gathered rows to decisions, a batch at a time: stored features, derived columns, matrix, scores, policy.

`Deciding` is what the steps after the gather need, opened once per worker. Its methods are the steps, in order; what goes
from one to the next is a `Work`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.derived import evaluate, numbers_of
from features.expressions import Expression
from features.memo import microseconds
from features.stored import REFUSED, StoredFeatures
from models.engine import Engine
from models.guard import Guard
from models.policy import Combinations, Policy
from models.spec import assemble
from sinks.messages import Column, Encoder, Messages, Position, encode_decisions
from streams.budget import LATE, Pace
from streams.exchange import Gathered, Hashes
from streams.meters import Step
from streams.ordering import NEVER
from streams.pipeline import Decisions
from streams.replays import alike, originals

I64 = npt.NDArray[np.int64]
FALLBACK = "fallback"
MOST_FLAGS = 63


class Work(NamedTuple):
    """n rows on their way, of so many batches, whose outputs go by `home`, decided by `deciding`.

    computed: features float [n] by name, NaN where none is; flags int64 [n], bit k: the k-th of `Deciding.flags`; hashes of
    columns, those that are known; scores float32 [n], or [n, k] of a model with k outputs; stored_times int64 [V, n], of the
    stored rows by view (features/stored.py); scored_from: when scoring began, ns, 0 where rows got no score of
    the model; polled: of how many decoded rows these are; steps: what the steps took, of one that is traced.
    """

    deciding: "Deciding"
    home: str
    batches: int
    batch: pa.RecordBatch
    computed: Mapping[str, npt.NDArray[Any]]
    flags: I64
    hashes: Hashes
    begins: int = NEVER
    matrix: npt.NDArray[np.float32] = np.empty((0, 0), np.float32)
    scores: npt.NDArray[np.float32] = np.empty(0, np.float32)
    stored_times: I64 = np.empty((0, 0), np.int64)
    scored_from: int = 0
    polled: int = 0
    steps: list[Step] | None = None

    @property
    def polled_at(self) -> I64:
        """When each row was polled, ns."""
        return self.batch.column("_polled_at").to_numpy()

    def ids(self, row: int) -> dict[str, Any]:
        """What a row's decision and event are called, and the version of the model that decides."""
        partition, offset = self.batch.column("_partition")[row], originals(self.batch)[row]
        return {
            "decision_id": f"{self.deciding.prefix}{partition}/{offset}",
            "event_id": self.batch.column(self.deciding.names.id)[row].as_py(),
            **self.deciding.version,
        }


def together(
    gathered: Sequence[tuple[str, Gathered]], names: Sequence[str], deciding: "Deciding", steps: list[Step] | None = None
) -> Work:
    """Everything queued on the worker as one batch; names: of the streaming features. deciding: what is to decide it. steps:
    see Work."""
    batches, values = [one.batch for _, one in gathered], [one.values for _, one in gathered]
    batch = batches[0] if len(batches) == 1 else pa.concat_batches(alike(batches))
    computed = dict(zip(names, values[0] if len(values) == 1 else np.concatenate(values, axis=1), strict=True))
    hashes = dict(gathered[0][1].hashes)
    for _, one in gathered[1:]:
        hashes = {name: np.concatenate([hashes[name], one.hashes[name]]) for name in hashes if name in one.hashes}
    begins = max(one.begins for _, one in gathered)
    flags = np.zeros(batch.num_rows, np.int64)
    polled = sum(one.polled for _, one in gathered)
    return Work(deciding, gathered[0][0], len(gathered), batch, computed, flags, hashes, begins, polled=polled, steps=steps)


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


@dataclass(frozen=True, eq=False)
class Deciding:
    """The steps between gather and sink, by one version of the model. guard: of the engine, where a policy can decide
    without a score. fill: what is given instead of stored features, which may be the version's medians. digest: of the
    version's files; reference: the identity of what its drift is measured from. pace: where there is a budget of time."""

    names: Names
    entities: tuple[str, ...]
    spans: tuple[tuple[str, int], ...]
    derived: tuple[tuple[str, Expression], ...]
    stored: StoredFeatures | None
    engine: Engine
    guard: Guard | None
    policy: Policy | None
    clock_ns: Callable[[], int]
    fill: npt.NDArray[np.float32] | None = None
    digest: str = ""
    reference: str = ""
    pace: Pace | None = None

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """What a decision may be flagged with. Raises ValueError for more flags than fit the bits of an integer."""
        no_entity = [f"no_entity:{name}" for name in self.entities]
        unknown = [f"unknown:{each.name}" for each in self.engine.spec.inputs if each.kind == "category"]
        warming = [f"warming:{name}" for name, _ in self.spans]
        late = (LATE,) if self.pace else ()
        names = (*no_entity, *(self.stored.flags if self.stored else ()), *warming, *unknown, FALLBACK, *late)
        if len(names) > MOST_FLAGS:
            raise ValueError(f"pipeline {self.names.pipeline}: expected at most {MOST_FLAGS} different flags, got {len(names)}")
        return names

    def complete(self, work: Work) -> Work:
        """Adds the stored and the derived features, and flags for what is missing, stale, later than the event, or warming."""
        batch, flags, stored_times = work.batch, work.flags, work.stored_times
        computed = dict(work.computed)
        if self.stored is not None:
            read = self.stored.read(batch, microseconds(batch.column(self.names.time)), work.hashes, self.fill)
            computed |= read.columns
            flags, stored_times = read.flags << len(self.entities), read.times
        for k, name in enumerate(self.entities):
            column = batch.column(name)
            if column.null_count:
                flags = flags | column.is_null().to_numpy(zero_copy_only=False).astype(np.int64) << k
        if work.begins > NEVER:
            ages = microseconds(batch.column(self.names.time)) - work.begins
            for k, (_, span) in enumerate(self.spans, self._warming_at):
                flags = flags | (ages < span).astype(np.int64) << k
        computed |= {name: numbers_of(column) for name, column in evaluate(self.derived, batch, computed).items()}
        return work._replace(computed=computed, flags=flags, stored_times=stored_times)

    def score(self, work: Work) -> Work:
        """Assembles the matrix and scores it, but for rows that would be late, where those are shed."""
        began = self.clock_ns()
        matrix, unknown = assemble(work.batch, self.engine.spec, computed=work.computed, hashes=work.hashes)
        flags = work.flags
        failed = self.guard.failed if self.guard else 0
        late = self.pace.late("score", work.polled_at, began) if self.pace and self.pace.sheds and work.polled else None
        if late is not None and late.any():
            flags = self._flagged(flags, LATE, late)
            scores, began = self._scores_of(matrix, ~late), 0
        else:
            scores = (self.guard or self.engine).infer(matrix)
        if self.guard and self.guard.failed > failed:
            began = 0
        if self.stored is not None and self.stored.refuses:
            refused = (flags >> self.flags.index(REFUSED) & 1).astype(np.bool_)
            scores = np.where(refused if scores.ndim == 1 else refused[:, None], np.float32(np.nan), scores)
        known = np.isfinite(scores)
        missing = ~known if scores.ndim == 1 else ~known.all(axis=1)
        if missing.any():
            scores = np.where(known, scores, np.float32(np.nan))  # infinity is no score either
        for name, mask in (*((f"unknown:{name}", mask) for name, mask in unknown.items()), (FALLBACK, missing)):
            if mask.any():
                flags = self._flagged(flags, name, np.asarray(mask))
        return work._replace(matrix=matrix, flags=flags, scores=scores, scored_from=began)

    def _scores_of(self, matrix: npt.NDArray[np.float32], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """The scores of the chosen rows, NaN for the others."""
        scores = np.full(self.engine.spec.shape(len(matrix)), np.nan, np.float32)
        if chosen.any():
            scores[chosen] = (self.guard or self.engine).infer(matrix[chosen])
        return scores

    def _flagged(self, flags: I64, name: str, rows: npt.NDArray[np.bool_]) -> I64:
        return flags | rows.astype(np.int64) << self.flags.index(name)

    def marked(self, work: Work) -> Work:
        """Flags the rows that will be handed over late. Only with a budget."""
        assert self.pace is not None
        late = self.pace.late("decide", work.polled_at, self.clock_ns())
        return work._replace(flags=self._flagged(work.flags, LATE, late)) if late.any() else work

    def decide(self, work: Work, features: Sequence[str] = ()) -> dict[str, Column]:
        """The decisions, as sinks/messages.py describes their columns, with `features` beside them. Only with a policy."""
        batch, n = work.batch, work.batch.num_rows
        assert self.policy is not None
        decided = self.policy(batch, work.scores, work.computed)
        columns: dict[str, Column] = {
            "_key": batch.column("_key"),
            "decision_id": Position(self.prefix, batch.column("_partition").to_numpy(), originals(batch).to_numpy()),
            "event_id": batch.column(self.names.id),
            "decision": decided.decision,
            "score": work.scores,
            "reasons": decided.reasons,
            "model": self.names.model,
            "model_version": self.names.model_version,
            "flags": self.flag_lists(work.flags),
            "event_time": batch.column(self.names.time),
            "decided_at": np.full(n, self.clock_ns() // 1000, "datetime64[us]"),
            "schema_version": self.names.schema_version,
        }
        for name in features:
            computed = work.computed.get(name)
            columns[name] = batch.column(name) if computed is None else computed
        return columns

    @cached_property
    def _warming_at(self) -> int:
        """The place of the first span's flag among the flags."""
        return self.flags.index(f"warming:{self.spans[0][0]}") if self.spans else 0

    @cached_property
    def prefix(self) -> str:
        """What the ids of all its decisions begin with."""
        return f"{self.names.pipeline}/{self.names.topic}/"

    @property
    def version(self) -> dict[str, Any]:
        """The version of the model that decides, as logs and traces name it."""
        return {"model": self.names.model, "model_version": self.names.model_version, "model_digest": self.digest}

    @cached_property
    def flag_lists(self) -> Combinations:
        """From the flags of rows to their names, coded."""
        flags = self.flags
        return Combinations(lambda bits: [name for k, name in enumerate(flags) if bits >> k & 1], 1)


def answers(work: Work, sinks: Sequence[Decisions], encoder: Encoder) -> tuple[dict[str, Column], list[Messages]]:
    """The decisions (none where every sink has an encoder of its own) and the messages of each sink, one for each row."""
    deciding = work.deciding
    inputs = deciding.engine.spec.names
    decisions: dict[str, Column] = {}
    if any(sink.encode is None for sink in sinks):
        decisions = deciding.decide(work, inputs if any(sink.features for sink in sinks) else ())
    written = []
    for sink in sinks:
        if sink.encode:
            written.append(sink.encode(work.batch, work.scores, sink.topic))
        else:
            written.append(encode_decisions(decisions, sink.topic, inputs if sink.features else (), encoder))
    return decisions, written
