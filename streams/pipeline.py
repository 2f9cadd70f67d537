"""What a pipeline is: the description that streams/flights.py reads like, its checks, and how one is found by name."""

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

from features.derived import compile_derived
from features.expressions import compile_expression
from features.spec import Feature, Fields, Label, Push, Stored, seconds
from features.streaming import Cutter, Group, groups
from models.policy import Bands
from sinks.encoders import Encode
from streams.budget import Budget
from streams.settings import JobSettings
from streams.topic import Topic

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow
    from prometheus_client import CollectorRegistry

    from models.engine import Engine, Load


DAY_SECONDS = 86_400
DELIVERIES = ("at_least_once", "exactly_once")


class Train(Protocol):
    """Trains a model on a frame of features and labels, and writes model.onnx and model.json to a folder; returns metrics."""

    def __call__(
        self, frame: pa.Table, folder: Path, *, seed: int, progress: Callable[[str, float], None]
    ) -> dict[str, float]: ...


@dataclass(frozen=True)
class Model:
    """A model of the registry. train: how it is made; history: the events it is made from, as decoded columns.

    until: an ISO time, UTC if it has no offset; what comes from then on is left out of training, and is what it is tried on.
    threads: of one call. limit: the seconds that a call may take (0: as long as it likes); it is ended then, and the policy's
    fallback decides. engine: what computes it: ONNX Runtime on the CPU, or a TensorRT or a Torch (models/tensorrt_engine.py,
    models/pytorch.py), or another `models.engine.Load`.
    """

    name: str
    train: Train | None = None
    history: Callable[[], pa.Table] | None = None
    until: str = ""
    threads: int = 1
    limit: float = 30.0
    engine: "Load | None" = None

    @property
    def load(self) -> "Callable[..., Engine]":
        """Makes the engine of a version's folder: see models.engine.Load, threads and seconds are given."""
        from models.engine import OnnxEngine

        return partial(self.engine or OnnxEngine, threads=self.threads, seconds=self.limit)

    @property
    def trained_until(self) -> datetime | None:
        """`until` as a time; None for all there is. Raises ValueError for what is no time."""
        if not self.until:
            return None
        when = datetime.fromisoformat(self.until)
        return when if when.tzinfo else when.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Drift:
    """Watches the model's inputs and scores per window of event time, and reports to a topic.

    window: a day of UTC. rate: the share of windows in which a false alarm is accepted, whatever the number of features.
    Raises ValueError for another window, or a rate that cannot be.
    """

    topic: str
    window: str = "1d"
    rate: float = 0.02

    def __post_init__(self) -> None:
        if seconds(self.window) != DAY_SECONDS:
            raise ValueError(f"drift: expected a window of a day (1d), got {self.window}")
        if not 0 < self.rate < 1:
            raise ValueError(f"drift: expected a rate above 0 and below 1, got {self.rate:g}")


@dataclass(frozen=True)
class Decisions:
    """The topic that decisions go to. features: whether each carries the features it was made on. encode: what writes the
    messages instead, from the event and its scores (sinks/encoders.py has some)."""

    topic: str
    features: bool = False
    encode: Encode | None = None


@dataclass(frozen=True)
class Record:
    """Writes decisions, with the features they were made on, as rows of Parquet (docs/record.md).

    path: the folder; by default record/PIPELINE in the job's home. share: of the decisions, chosen by their ids. megabytes: of
    a file before it is made Parquet, about five times as much as it has then. Raises ValueError for a share or size that
    cannot be.
    """

    path: str = ""
    share: float = 1.0
    megabytes: float = 128.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"record: expected a share above 0 and up to 1, got {self.share:g}")
        if not self.megabytes > 0:
            raise ValueError(f"record: expected megabytes above 0, got {self.megabytes:g}")

    def folder(self, home: Path, pipeline: str) -> Path:
        """Where the record of the pipeline of that name is, in a job with that home."""
        return Path(self.path) if self.path else home / "record" / pipeline


@dataclass(frozen=True)
class Pipeline:
    """A pipeline. Raises ValueError, naming what is wrong, when it is made.

    decide_on: the events that are scored; all if not given. policy: from scores to decisions; not needed where every sink has
    an encoder of its own. push: streaming features that are written to Feast. feast_repo: the folder of the Feast repo of the
    stored features, unless the settings name another. sources: writes the Parquet files that this repo's views read into its
    folder `data`, and returns how many rows each has; not given for a repo that is fed, applied and materialised by others.
    most_entities: of which a shard holds the streaming features, for each kind of entity; beyond it the ones longest without an
    event leave (0: no bound). delivery: whether a crash repeats what was written since the last epoch, or the output appears in
    transactions, an epoch later, each message once. budget: the time that an event may take from its poll to the hand-over of
    its decision.
    """

    name: str
    events: Topic
    features: Sequence[Feature]
    model: Model
    sinks: Sequence[Decisions]
    decide_on: str = "True"
    policy: Bands | None = None
    label: Label | None = None
    drift: Drift | None = None
    record: Record | None = None
    push: Sequence[Push] = ()
    feast_repo: Path | None = None
    sources: Callable[[Path], Mapping[str, int]] | None = None
    shards: int = 8
    most_entities: int = 0
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    budget: Budget | None = None

    def __post_init__(self) -> None:
        columns = self.columns
        compile_expression(self.decide_on, columns)
        for feature in self.features:
            if isinstance(feature, Fields):
                for name in feature.names:
                    if name not in columns.names:
                        raise ValueError(f"pipeline {self.name}: feature {name}: no such field in {self.events.schema.name}")
        compile_derived(self.features, columns, None)
        for group in self.groups:
            Cutter(group, columns, self.events.time, self.events.ties)
        for push in self.push:
            self.pushed(push)
            if [each.source for each in self.push].count(push.source) > 1:
                raise ValueError(f"pipeline {self.name}: expected one push to {push.source}, got several")
        if self.label:
            compile_expression(self.label.value, columns)
            compile_expression(self.label.where, columns)
            seconds(self.label.within)
        _ = self.model.trained_until
        if not self.model.limit >= 0:
            raise ValueError(
                f"pipeline {self.name}: expected a limit of the model's calls of 0 s or more, got {self.model.limit:g}"
            )
        if self.delivery not in DELIVERIES:
            raise ValueError(f"pipeline {self.name}: expected delivery {' or '.join(DELIVERIES)}, got {self.delivery}")
        if not 1 <= self.shards <= 840:
            raise ValueError(f"pipeline {self.name}: expected 1 to 840 shards, got {self.shards}")
        if len(self.sinks) == 0:
            raise ValueError(f"pipeline {self.name}: expected at least one sink")
        if self.budget and self.budget.late == "shed" and self.policy is None:
            raise ValueError(f"pipeline {self.name}: expected a policy that decides what its budget sheds, got none")
        for sink in self.sinks:
            self._check(sink)

    def _check(self, sink: Decisions) -> None:
        where = f"pipeline {self.name}: sink {sink.topic}"
        if sink.encode is None:
            if self.policy is None:
                raise ValueError(f"{where}: expected a policy that makes decisions, or an encode, got neither")
            return
        for name in sink.encode.columns:
            if name not in self.columns.names and name != "_value":
                raise ValueError(f"{where}: its encoder reads {name}: no such field in {self.events.schema.name}")
        if "_value" in sink.encode.columns and (secrets := self.events.schema.secrets):
            raise ValueError(f"{where}: its encoder reads _value, the message itself, in which {secrets[0]} is secret")
        if "_value" in sink.encode.columns and self.events.decoder is not None:
            raise ValueError(f"{where}: its encoder reads _value, which a decoder of one's own does not keep")

    @property
    def columns(self) -> pa.Schema:
        """The columns of a decoded event."""
        return self.events.columns

    @property
    def groups(self) -> tuple[Group, ...]:
        """The streaming features by entity."""
        return groups(self.features)

    @property
    def group(self) -> str:
        """The consumer group that its safe positions are committed to."""
        return f"headrace-{self.name}"

    @property
    def progress(self) -> str:
        """The topic that says how far the committed output is, where it is delivered exactly once."""
        return f"{self.group}-progress"

    def pushed(self, push: Push) -> Group:
        """The group of the entity whose features are pushed. Raises ValueError where they are not streaming features of one."""
        here = f"pipeline {self.name}: push to {push.source}"
        known = [name for group in self.groups for name in group.names]
        unknown = [name for name in push.features if name not in known]
        if unknown:
            raise ValueError(f"{here}: expected streaming features among {', '.join(known)}, got {', '.join(unknown)}")
        found = [group for group in self.groups if any(name in push.features for name in group.names)]
        if len(found) > 1:
            entities = ", ".join(group.entity for group in found)
            raise ValueError(f"{here}: expected features of one entity, got some of {entities}: push each by its own")
        return found[0]

    @property
    def encoded(self) -> tuple[str, ...]:
        """The columns of an event that the sinks' encoders read."""
        return tuple(dict.fromkeys(name for sink in self.sinks if sink.encode for name in sink.encode.columns))

    @property
    def stored(self) -> Stored | None:
        """The stored features, if there are any. Raises ValueError for more than one."""
        found = [feature for feature in self.features if isinstance(feature, Stored)]
        if len(found) > 1:
            services = ", ".join(each.service for each in found)
            raise ValueError(f"pipeline {self.name}: expected at most one Stored, got {services}: join them in Feast")
        return found[0] if found else None

    @property
    def service(self) -> str | None:
        """The Feast service of the stored features, if there are any."""
        return self.stored.service if self.stored else None

    def repo(self, settings: JobSettings) -> Path:
        """The Feast repo in force. Raises ValueError where nobody names one."""
        found = settings.feast_repo or self.feast_repo
        if found is None:
            raise ValueError(
                f"pipeline {self.name}: its stored features need a Feast repo, got none: name its folder as feast_repo in "
                f"headrace.toml, as HEADRACE_FEAST_REPO, or in the Pipeline"
            )
        return found

    def feature_names(self, stored: Sequence[str]) -> list[str]:
        """Every feature in the pipeline's order; `stored` are the names of the stored ones."""
        names: list[str] = []
        for feature in self.features:
            names += stored if isinstance(feature, Stored) else feature.names
        return names

    def topics(self) -> list[str]:
        """Every topic that the pipeline reads or writes."""
        outputs = [sink.topic for sink in self.sinks]
        return [self.events.topic, *outputs, self.events.dead, *([self.drift.topic] if self.drift else [])]

    def flow(
        self,
        settings: JobSettings | None = None,
        registry: "CollectorRegistry | None" = None,
        clock_ns: Callable[[], int] = time.time_ns,
        **parts: Any,
    ) -> "Dataflow":
        """The dataflow; without arguments its settings come from the environment. Nothing is opened before it runs.

        `parts` replaces the job's parts by others: source, sink, champion (streams/job.py).
        """
        from prometheus_client import REGISTRY

        from streams.flow import build
        from streams.job import Job

        return build(Job(self, settings or JobSettings(), registry or REGISTRY, clock_ns, **parts))


class PipelineNotFoundError(LookupError):
    """There is no such pipeline; the message says what to name."""


def load(name: str) -> Pipeline:
    """The pipeline "PATH.py:NAME", or "PATH.py" of a file with one, or one of our own by its name alone.

    Raises PipelineNotFoundError.
    """
    path, _, attribute = name.partition(":")
    if not path.endswith(".py"):
        own = Path(__file__).parent / f"{path}.py"
        path, attribute = str(own), attribute or name
    if not Path(path).is_file():
        raise PipelineNotFoundError(f"no pipeline {name}: expected PATH.py:NAME of a file that exists, or flights")
    module = _import(Path(path).resolve())
    found = {key: value for key, value in vars(module).items() if isinstance(value, Pipeline)}
    if not attribute and len(found) == 1:
        return next(iter(found.values()))
    if attribute not in found:
        known = ", ".join(found) or "none"
        raise PipelineNotFoundError(f"no pipeline {attribute or '(no name given)'} in {path}: it has {known}")
    return found[attribute]


def _import(path: Path) -> Any:
    if path.parent == Path(__file__).parent.resolve():
        return importlib.import_module(f"streams.{path.stem}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise PipelineNotFoundError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module
