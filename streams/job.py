"""A job: a pipeline with its settings, and the parts it runs on, each opened once per worker when it is first needed."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from prometheus_client import CollectorRegistry

from features.derived import compile_derived
from features.expressions import Expression, compile_expression
from features.push_source import push_writer
from features.pushing import Pushing
from features.spec import Fields, seconds
from features.state import spans
from features.stored import StoredFeatures
from features.streaming import Cutter
from models.engine import Engine
from models.guard import Guard
from models.news import Good, News, key, loaded, news_file, reason_of, try_out
from models.policy import SCORE
from models.reference import STATISTICS, Reference
from models.registry import resolve
from models.shadow import Compared, shadow_folder
from models.spec import digest as digest_of
from sinks.journal import Journal, adopt
from sinks.kafka import KafkaSink
from sinks.messages import Sink
from sinks.outbox import Outbox
from sinks.records import shaped
from sinks.staged import Log
from sinks.transactions import KafkaLane, progress_topic
from streams.budget import Pace
from streams.closing import Closing
from streams.decide import Deciding, Names, Work
from streams.decode import PROVENANCE, Decoder
from streams.inputs import fits
from streams.meters import Meters
from streams.notices import Notices
from streams.ordering import Held
from streams.pipeline import Pipeline, Record
from streams.poison import Aside
from streams.polling import WAIT_SECONDS, Beginning, Gate
from streams.push import taker
from streams.record import Entry, LogRows
from streams.routing import page_name
from streams.settings import JobSettings
from streams.shadowing import Shadowing
from streams.shards import FIRST_EPOCH, Shards
from streams.source import KafkaSource, MemorySource
from streams.start import Rebuilding, Start
from streams.tracing import Tracing
from streams.trail import ALL, Trail

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


@dataclass(frozen=True)
class Champion:
    """The model in use: its version in the registry, its engine, and the reference that drift is measured from."""

    version: int
    engine: Engine
    reference: Reference | None
    digest: str = ""


@dataclass(eq=False)
class Job:
    """One worker's job. `source`, `sink`, `lanes` and `champion` stand in for Kafka and the registry where they are given.

    lanes: what a shard's staged output is committed to (sinks/staged.py). at: told the name of each point of delivery that is
    passed. start: where it begins if it has no state; epoch: the first of this run. say: told in words, and with fields
    for a log, how far a rebuild is, that the model throws, and the like. span_exporter: takes the spans of traced batches
    in the place of OpenTelemetry's own. trail, aside: for a job that is started again when it dies: where it writes down how
    far it is, and what it must not touch. moved: told whenever the source is asked for more. news_read: of when (ns) the news
    of the model are that it has begun with.
    """

    pipeline: Pipeline
    settings: JobSettings
    registry: CollectorRegistry
    clock_ns: Callable[[], int]
    source: KafkaSource | MemorySource | None = None
    sink: Sink | None = None
    champion: Champion | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    until_end: bool = False
    workers: int = 1
    worker: int = 0
    start: Start = field(default_factory=Start)
    epoch: int = FIRST_EPOCH
    lanes: Callable[[int], Log] | None = None
    at: Callable[[str], None] = lambda point: None
    say: Callable[..., None] = lambda words, **fields: None
    span_exporter: "SpanExporter | None" = None
    moved: Callable[[], None] = lambda: None
    trail: Trail | None = None
    aside: Aside = field(default_factory=dict)
    news_read: int = field(default=0, init=False)
    _references: dict[str, Reference] = field(default_factory=dict, init=False)

    @property
    def workers_here(self) -> range:
        """The numbers of the workers that are on this machine; the first of them does what is done once on each."""
        each = self.workers // self.settings.machines
        first = self.settings.machine * each
        return range(first, first + each)

    @cached_property
    def meters(self) -> Meters:
        budget = self.pipeline.budget
        meters = Meters(self.registry, self.pipeline.name, budget.milliseconds / 1e3 if budget else None)
        meters.codes(self.pipeline.events.codes)
        return meters

    @cached_property
    def notices(self) -> Notices | None:
        """What says which decisions were late or without a score, and what was set aside, in a log for machines."""
        return Notices(self.say, self.pipeline.events.topic) if self.settings.log == "json" else None

    @cached_property
    def tracing(self) -> Tracing | None:
        """What traces a share of the batches, where the settings ask for it."""
        name, topic, share = self.pipeline.name, self.pipeline.events.topic, self.settings.trace_share
        return Tracing(name, topic, self.worker, share, self.clock_ns, self.span_exporter) if share else None

    @cached_property
    def gate(self) -> Gate:
        """What the source waits for; in event order rows wait for other partitions' and no poll may wait for them. With
        several workers others' rows come to this one meanwhile, and none waits either."""
        closing = Closing(self.settings.epoch_seconds)
        if self.order == "event":
            return Gate(0, moved=self.moved, closing=closing)
        patience = WAIT_SECONDS if self.workers == 1 else 0.0
        rows = self.pace.rows if self.pace else lambda limited: ALL
        return Gate(self.workers, patience, rows, self._between_rounds, closing)

    @cached_property
    def gathers(self) -> bool:
        """Whether rows are joined to what shards hold, or wait for other partitions'; else they go on as they were decoded."""
        return bool(self.pipeline.groups) or self.order == "event"

    @property
    def takes_turns(self) -> bool:
        """Whether nothing is on its way between two rounds of polls. With several workers others' rows may be, and in event
        order what waits for others."""
        return self.workers == 1 and self.order != "event" and self.gate.partitions > 0

    def _between_rounds(self) -> None:
        self.moved()
        if self.takes_turns and self.gate.idle and self.shards.page_due is not None:
            with self.meters.stage("features"):
                self.shards.ahead()

    @cached_property
    def pace(self) -> Pace | None:
        """How long batches take, where there is a budget of time."""
        return Pace(self.pipeline.budget) if self.pipeline.budget else None

    @cached_property
    def events(self) -> KafkaSource | MemorySource:
        if self.source is not None:
            self.source.gate, self.source.beginning = self.gate, self.beginning
            return self.source
        settings, topic = self.settings, self.pipeline.events
        return KafkaSource(
            topic.topic,
            settings.brokers,
            settings.client,
            group=self.pipeline.group,
            rows=settings.poll_rows,
            clock_ns=self.clock_ns,
            stop=self.stop,
            until_end=self.until_end,
            spent=lambda seconds: self.meters.spent("event", seconds),
            gate=self.gate,
            beginning=self.beginning,
        )

    @cached_property
    def beginning(self) -> Beginning:
        """Where the source begins. In event order it hears from the gather step what waits, which has to be on its worker."""
        beginning = Beginning(
            self.epoch,
            self.start.read,
            self.start.decide,
            left=Rebuilding(self.pipeline.name, self.start, self.meters.rebuild_left.set, self.say).left,
            publishes=self.settings.recovery,
            failed=self.meters.commits_failed.inc,
            durable=lambda: self.outbox.durable() if self.staged else 0,
            committed=lambda wait: self.outbox.committed(wait) if self.staged else 0,
            trail=self.trail,
        )
        self.meters.lags(beginning.lags)
        return beginning

    @cached_property
    def decoder(self) -> Decoder:
        return self.pipeline.events.decode(
            f"{self.pipeline.name}/decode", self.settings, whole="_value" in self.pipeline.encoded, aside=self.aside
        )

    @cached_property
    def order(self) -> str:
        return self.settings.order or self.pipeline.events.order

    @cached_property
    def decide_on(self) -> Expression:
        return compile_expression(self.pipeline.decide_on, self.pipeline.columns)

    @cached_property
    def cutters(self) -> list[Cutter]:
        topic = self.pipeline.events
        ties = topic.ties if self.order == "event" else ()
        return [Cutter(group, self.pipeline.columns, topic.time, ties) for group in self.pipeline.groups]

    @cached_property
    def kept(self) -> list[str]:
        """The columns of an event that are needed once its streaming features are there, by whatever version of the model."""
        topic, deciding = self.pipeline.events, self.deciding
        conditions = [expression for _, expression in deciding.derived]
        if deciding.policy is not None:
            conditions += deciding.policy.conditions
        read = {name for expression in conditions for name in expression.names}
        stored = deciding.stored.entities if deciding.stored else ()
        encoded = self.pipeline.encoded
        fields = {name for feature in self.pipeline.features if isinstance(feature, Fields) for name in feature.names}
        wanted = {topic.time, topic.id, *deciding.entities, *stored, *read, *fields, *encoded}
        whole = ["_value"] if "_value" in wanted else []
        return [name for name in self.pipeline.columns.names if name in wanted] + PROVENANCE.names + whole

    @cached_property
    def streaming_names(self) -> list[str]:
        """The streaming features, group by group."""
        return [name for group in self.pipeline.groups for name in group.names]

    @cached_property
    def shards(self) -> Shards:
        """What this worker holds of the streaming features' state."""
        held = None
        if self.order == "event":
            held = Held(self.events.partitions, len(self.pipeline.groups), self.pipeline.events.held_rows)
        most = self.pipeline.most_entities * -(-self.pipeline.shards // self.workers)
        shards = Shards(self.pipeline.groups, self.pipeline.shards, held, most, self.start.begins)
        self.meters.states(lambda: {state.group.entity: state.nbytes for state in shards.states})
        return shards

    @cached_property
    def staged(self) -> bool:
        """Whether output is delivered exactly once."""
        return (self.settings.delivery or self.pipeline.delivery) == "exactly_once"

    @cached_property
    def output(self) -> Sink | None:
        """Where messages go at once; None where they are staged."""
        if self.staged:
            return None
        return self.sink or KafkaSink(self.settings.brokers, self.settings.client)

    @cached_property
    def outbox(self) -> Outbox:
        """Where staged messages are committed. Raises DeliveryError."""
        partitions = self.events.partitions
        own = range(self.worker, partitions, self.workers) if self.staged else ()
        if self.lanes is not None:
            return Outbox(self.lanes, own, at=self.at)
        settings, pipeline = self.settings, self.pipeline
        progress_topic(settings.brokers, settings.client, pipeline.progress, partitions)
        return Outbox(
            lambda shard: KafkaLane(settings.brokers, settings.client, pipeline.group, shard, pipeline.progress, self.at),
            own,
            at=self.at,
        )

    def finish(self) -> None:
        """Commits what is staged, once the dataflow has ended in order."""
        if self.staged and not self.beginning.reading:
            self.outbox.finish()

    def log_rows(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """The rows of the record of entries of one version of the model."""
        return self._log_rows_of(entries[0].work.deciding)(entries)

    @cached_property
    def _log_rows_of(self) -> Callable[[Deciding], LogRows]:
        features, age_by = self.pipeline.features, self.settings.stored_age
        share = self.pipeline.record.share if self.pipeline.record else 1.0
        return lru_cache(2)(lambda deciding: LogRows(deciding, features, share, age_by, "last" if self.staged else "first"))

    @cached_property
    def journal(self) -> Journal[Entry]:
        """Where the record of this worker's decisions is written."""
        said = self.pipeline.record or Record()
        folder = said.folder(self.settings.home, self.pipeline.name)
        adopt(folder, self.worker, self.workers_here, shaped)
        chain, size = folder / f"worker-{self.worker}", int(said.megabytes * 1e6)
        journal = Journal(
            chain,
            self.log_rows,
            shaped,
            bytes_a_file=size,
            kind=lambda entry: entry.work.deciding,
            clock=lambda: self.clock_ns() / 1e9,
        )
        self.meters.recording(lambda: journal.rows)
        return journal

    @cached_property
    def champion_in_use(self) -> Champion:
        self._begin()
        found: Champion = vars(self)["champion_in_use"]
        return found

    @cached_property
    def shadowing(self) -> Shadowing:
        """What hands decided batches to a shadow, where there is one."""
        folder, model = shadow_folder(self.settings.home / "models", self.pipeline.name), self.pipeline.model.name
        if self.worker == self.workers_here.start:
            self.meters.shadow(lambda: Compared.read(folder))
        policy, features = self.deciding.policy, self.pipeline.feature_names(self.stored.names if self.stored else ())
        read = {name for condition in (policy.conditions if policy else ()) for name in condition.names} - {SCORE}
        return Shadowing(
            folder,
            self.worker,
            list(dict.fromkeys([*features, *sorted(read)])),
            self.meters.shadow_left_out.inc,
            lambda words: self.say(f"model {model}: {words}", level="warning", model=model),
        )

    @cached_property
    def deciding(self) -> Deciding:
        """What decides: `swap` puts another in its place."""
        self._begin()
        found: Deciding = vars(self)["deciding"]
        return found

    def _begin(self) -> None:
        """The first version of the model takes its place."""
        self._adopt(*self._to_begin_with())
        self.meters.model(
            lambda: self.deciding.names.model_version,
            lambda: self.deciding.engine.kind,
            lambda: self.deciding.guard is not None and self.deciding.guard.resting,
        )

    def _to_begin_with(self) -> tuple[Champion, Deciding]:
        """The registry's champion, or, where that cannot be used, the last one that was checked and can. One that was refused
        is tried again: the pipeline, or what failed, may be another."""
        if self.champion is not None:
            return self.champion, self.decided_by(self.champion)
        name, models = self.pipeline.model.name, self.settings.home / "models"
        file = news_file(models, self.pipeline.name)
        with suppress(FileNotFoundError):
            self.news_read = file.stat().st_mtime_ns
        news, asked = News.read(file).of(name), Good(0, "", "")
        try:
            version = resolve(self.settings.registry_uri, name, into=models)
            asked = Good(version.version, version.digest, version.folder.name)
            made = self.made(asked)
            if key(version.version, version.digest) in news.refused:
                try:
                    try_out(made[0].engine, made[0].reference)
                except ValueError:
                    made[0].engine.close()
                    raise
            return made
        except ValueError as error:
            for good in news.good:
                with suppress(OSError, ValueError):  # it may not fit either: then the champion's error is to be seen
                    if good[:2] != asked[:2] and digest_of(models / good.folder) == good.digest:
                        found, why = self.made(good), reason_of(error)
                        words = f"version {good.version} decides: the champion cannot be used: {why}"
                        refused = {"refused_version": asked.version, "refused_digest": asked.digest}
                        self.say(f"model {name}: {words}", level="warning", **found[1].version, **refused)
                        return found
            raise

    def made(self, good: Good, checked: bool = False) -> tuple[Champion, Deciding]:
        """A version of the model, from its files, ready to decide. Raises ValueError for one that cannot."""
        folder = self.settings.home / "models" / good.folder
        engine, reference = loaded(folder, self.pipeline.model.load, self.pipeline.drift is not None, checked)
        champion = Champion(good.version, engine, reference, good.digest)
        return champion, self.decided_by(champion)

    def swap(self, champion: Champion, deciding: Deciding) -> None:
        """From the next batch on, `deciding` (of `decided_by`) decides. Any thread may call it, one at a time."""
        self._adopt(champion, deciding)
        if self.pace:
            self.pace.forget()
        self.meters.model_swaps.inc()

    def _adopt(self, champion: Champion, deciding: Deciding) -> None:
        self.meters.outcomes(self.pipeline.policy.decisions if self.pipeline.policy else (), deciding.flags)
        if self.pipeline.drift and champion.reference is not None and self.worker == 0:  # worker 0 judges all days
            self.meters.watched(champion.reference.names, STATISTICS)
        if champion.reference is not None:  # what the version before was given may still be counted
            self._references = dict([*self._references.items(), (deciding.reference, champion.reference)][-2:])
        self.champion_in_use, self.deciding = champion, deciding

    @cached_property
    def stored(self) -> StoredFeatures | None:
        asked, settings = self.pipeline.stored, self.settings
        if asked is None:
            return None
        stored = StoredFeatures(
            self.pipeline.repo(settings),
            asked,
            medians=None,
            age=settings.stored_age,
            refresh_seconds=settings.stored_refresh_seconds,
            patience=settings.stored_patience_seconds,
            max_entities=settings.stored_entities,
            clock=lambda: self.clock_ns() / 1e9,
        )
        self.meters.stored(stored.counts, lambda: stored.failures)
        return stored

    @cached_property
    def pushing(self) -> dict[str, Pushing]:
        """What writes streaming features to Feast, by push source."""
        made: dict[str, Pushing] = {}
        for push in self.pipeline.push:
            kind = self.pipeline.columns.field(self.pipeline.pushed(push).entity).type
            write = push_writer(self.pipeline.repo(self.settings), push.source, push.features, kind)
            made[push.source] = Pushing(push.source, write, seconds(push.every), push.most_entities)
        if made:
            self.meters.pushing(made)
        return made

    @cached_property
    def takers(self) -> list[Callable[[Work], None]]:
        """What hands a decided batch's features to those who push them."""
        pipeline = self.pipeline
        return [taker(push, pipeline.pushed(push), self.deciding, self.pushing[push.source]) for push in pipeline.push]

    @property
    def reference(self) -> Reference:
        """What drift is measured from."""
        return self._references[self.deciding.reference]

    @cached_property
    def drift_thread(self) -> Executor:
        return ThreadPoolExecutor(1, "drift")

    def count_drift(
        self, reference: str, matrix: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64] | None:
        """Counts on the drift thread, and the time that takes; None for a reference that is not known."""
        known = self._references.get(reference)
        if known is None:
            return None
        with self.meters.stage("drift", len(scores), aside=True):
            return known.count(matrix, scores)

    def decided_by(self, champion: Champion) -> Deciding:
        """What decides by a version of the model. Raises ValueError for one that does not fit."""
        pipeline, stored = self.pipeline, self.stored
        schema = pipeline.columns
        derived = compile_derived(pipeline.features, schema, stored.names if stored else ())
        names = pipeline.feature_names(stored.names if stored else ())
        fields = {name for feature in pipeline.features if isinstance(feature, Fields) for name in feature.names}
        computed = [(name, pa.float64()) for name in names if name not in fields]
        spec, reference, model = champion.engine.spec, champion.reference, pipeline.model.name
        say = partial(self.say, model=model, model_version=champion.version, model_digest=champion.digest)
        fits(pipeline, spec, champion.version, stored.names if stored else ())
        if pipeline.drift and reference is None:
            raise ValueError(
                f"model {pipeline.model.name}: it has no reference profile to measure drift from: make it again with headrace "
                f"train or headrace models register"
            )
        return Deciding(
            names=Names(
                pipeline.name,
                pipeline.events.topic,
                pipeline.events.time,
                pipeline.events.id,
                pipeline.events.schema.version,
                pipeline.model.name,
                champion.version,
            ),
            entities=tuple(group.entity for group in pipeline.groups),
            spans=spans(pipeline.groups),
            derived=derived,
            stored=stored,
            engine=champion.engine,
            guard=Guard(champion.engine, say, on_failed=self.meters.model_failed.inc) if pipeline.policy else None,
            policy=pipeline.policy.compile(pa.schema([*schema, *computed])) if pipeline.policy else None,
            clock_ns=self.clock_ns,
            fill=stored.filled(spec.medians) if stored else None,
            digest=champion.digest,
            reference=reference.identity if reference else "",
            pace=self.pace,
        )

    def open(self) -> None:
        """Opens every part, so that what is missing is said before the dataflow starts."""
        if isinstance(self.events, KafkaSource):
            _ = self.events.partitions
        if self.staged and not self.settings.recovery:
            raise ValueError(f"pipeline {self.pipeline.name}: delivery exactly_once needs the recovery store, which is off")
        _ = self.decoder, self.cutters, self.deciding, self.output
        if self.staged:
            _ = self.outbox
        _ = [page_name(shard, 0) for shard in range(self.pipeline.shards)]
        if self.pipeline.record:
            _ = self.journal
        _ = self.takers
        if self.settings.model_look_seconds:
            _ = self.shadowing
        if self.stored is not None:
            self.stored.warm()
        _ = self.tracing

    def close(self) -> None:
        """Closes what was opened, but not what was given."""
        opened = vars(self)
        if "drift_thread" in opened:
            self.drift_thread.shutdown(wait=False, cancel_futures=True)
        if "journal" in opened:
            self.journal.close()
        if "shadowing" in opened:
            self.shadowing.close()
        for pushing in opened.get("pushing", {}).values():
            pushing.close()
        if isinstance(stored := opened.get("stored"), StoredFeatures):
            stored.close()
        if "outbox" in opened:
            self.outbox.close()
        if self.sink is None and (output := opened.get("output")) is not None:
            output.close()
        if (champion := opened.get("champion_in_use")) not in (None, self.champion):
            champion.engine.close()
        if isinstance(tracing := opened.get("tracing"), Tracing):
            tracing.close()
