"""Workloads of messages from a pool, each of which is answered with the scores that ONNX Runtime alone gives it."""

import hashlib
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pyarrow as pa

from bench.pool import Pool
from bench.workloads import PAYLOADS, Checked, Job, Prepared, Progress
from models.registry import ModelNotFound, record, resolve
from streams.settings import JobSettings

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
POOLED = 2_000
SEED = 1
STEP = 500_000
TOLERANCE = 1e-4
SCORES, EVENTS = "scores.npy", "events.json"


class Content(NamedTuple):
    """n events: what stands in their messages before and after the id, the matrix float32 [n, K] that the model is to be given
    of them, and the texts that their answers hold where a workload echoes."""

    around: list[tuple[str, str]]
    matrix: F32
    echoes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Pooled(ABC):
    """A workload (bench/workloads/__init__.py) whose messages are made from a pool.

    first: the first id. read: from output messages to their ids i64 [n] and scores f64 [n, k], NaN where a message has none,
    which must then be the event itself. echoes: whether an answer must hold the text of its event. pipeline: the text of
    headrace's pipeline file. model_name: in the registry, if not that of the workload.
    """

    name: str
    first: int
    read: Callable[[Sequence[bytes]], tuple[I64, F64]]
    pipeline: str
    echoes: bool = False
    model_name: str = ""
    passes: str = ""
    _home: list[JobSettings] = field(default_factory=list)

    @property
    @abstractmethod
    def width(self) -> int:
        """The number of the model's inputs."""

    @property
    @abstractmethod
    def recipe(self) -> tuple[object, ...]:
        """What the events depend on beside the model, the first id and the seed."""

    @abstractmethod
    def content(self, rng: np.random.Generator, n: int) -> Content:
        """n events. After `ready`."""

    @abstractmethod
    def write_model(self, folder: Path, name: str) -> dict[str, object]:
        """Writes the files of the model; returns what it was made with."""

    @property
    def settings(self) -> JobSettings:
        """Those of the home that it was made ready for."""
        return self._home[-1] if self._home else JobSettings()

    @property
    def _model(self) -> str:
        return self.model_name or self.name

    def ready(self, home: Path, progress: Progress) -> None:
        """Records the model in the registry of `home` if it is not there."""
        self._home.append(JobSettings(home=home))
        try:
            self.model()
        except ModelNotFound:
            progress(f"{self.name}: making the model", 0.0)
            with tempfile.TemporaryDirectory() as folder:
                params = self.write_model(Path(folder), self._model)
                record(self.settings.registry_uri, self._model, Path(folder), params=params, metrics={})

    def model(self) -> Path:
        """The model's files."""
        settings = self.settings
        return resolve(settings.registry_uri, self._model, into=settings.home / "models").folder.absolute()

    def repo(self) -> Path | None:
        """There are no stored features."""
        return None

    def job(self) -> Job:
        """headrace's own pipeline."""
        return Job(self.pipeline, ("{input}.dead",), {"HEADRACE_REGISTRY": self.settings.registry_uri})

    def prepare(self, messages: int, progress: Progress) -> Prepared:
        """Keys and ids for at least so many messages, and the pool they are made from, with its scores."""
        rounded = STEP
        while rounded < messages:
            rounded *= 2
        told = repr((self.model().name, *self.recipe, self.first, POOLED, SEED))
        version = hashlib.sha256(told.encode()).hexdigest()[:12]
        folder = self.settings.home.absolute() / "bench" / self.name / f"{rounded}-{version}"
        if not folder.exists():
            progress(f"{self.name}: making {POOLED:,} messages", 0.0)
            making = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            self._make(making, rounded)
            making.rename(folder)
        pool = _pool(folder)
        mean = np.mean([len(a) + len(b) for a, b in zip(pool.before, pool.after, strict=True)]) + len(str(self.first))
        return Prepared(folder, messages, round(float(mean), 1), SEED)

    def _make(self, folder: Path, messages: int) -> None:
        rng = np.random.default_rng(SEED)
        made = self.content(rng, POOLED)
        Pool([before.encode() for before, _ in made.around], [after.encode() for _, after in made.around]).write(folder)
        np.save(folder / SCORES, scored(self.model() / "model.onnx", made.matrix))
        (folder / EVENTS).write_text(json.dumps(made.echoes))
        keys = rng.integers(-(2**31), 2**31, messages).astype(">i4").tobytes()
        ends = pa.py_buffer(np.arange(0, 4 * messages + 4, 4, dtype=np.int32))
        key = pa.Array.from_buffers(pa.binary(), messages, [None, ends, pa.py_buffer(keys)])
        table = pa.table({"key": key, "id": np.arange(self.first, self.first + messages)})
        with pa.OSFile(str(folder / PAYLOADS), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=100_000)

    def check(self, prepared: Prepared, values: Sequence[bytes], *, ordered: bool) -> Checked:
        """Scores within 1e-4 and, where it echoes, the event's text beside them; without scores the event's own bytes."""
        ids, scores = self.read(values)
        expected = np.load(prepared.folder / SCORES)
        known = (ids >= self.first) & (ids < self.first + prepared.messages)
        place = np.where(known, ids - self.first, 0)
        row = place % len(expected)
        none = np.isnan(scores).all(axis=1)
        with np.errstate(invalid="ignore"):
            wrong = ~known | ~(np.abs(scores - expected[row]) <= TOLERANCE).all(axis=1)
        pool = _pool(prepared.folder)
        for k in np.flatnonzero(known & none).tolist():
            wrong[k] = values[k] != pool.values(int(place[k]), [int(ids[k])])[0]
        if self.echoes:
            events = [text.encode() for text in json.loads((prepared.folder / EVENTS).read_text())]
            for k in np.flatnonzero(known & ~none & ~wrong).tolist():
                wrong[k] = events[row[k]] not in values[k]
        return Checked(np.where(known, ids, -1), wrong, _why(values, ids, known, wrong, expected[row]), known & none)


def _why(values: Sequence[bytes], ids: I64, known: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_], expected: F64) -> str:
    if not wrong.any():
        return ""
    k = int(np.argmax(wrong))
    said = f"the scores {expected[k].round(6).tolist()} of {ids[k]}, with its event" if known[k] else "an answer that is due"
    return f"expected {said}, got {values[k][:100]!r} ... {values[k][-300:]!r}"


def _pool(folder: Path) -> Pool:
    pool = Pool.read(folder)
    assert pool is not None
    return pool


def scored(model: Path, matrix: F32) -> F64:
    """f64 [n, k] by ONNX Runtime alone."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: matrix})[0]
    return np.asarray(scores, np.float64).reshape(len(matrix), -1)
