"""What is known of a model's newest versions: found beside the jobs, and told to them in a file.

A registry is a large library and sometimes slow, a new version has to be fetched, checked and tried: none of that belongs into
a process that decides. One process of its own looks (`look`), and the jobs read what it wrote.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from models.engine import Matrix, ModelRefused, OnnxEngine
from models.reference import Reference
from models.registry import Version, newest, resolve
from models.spec import ModelSpec

SAMPLE_ROWS = 64


@dataclass(frozen=True)
class News:
    """The version to use, its digest and its folder, which was checked; 0 and empty where there is none yet. refused: the
    versions, as texts, that are not used, and why."""

    version: int = 0
    digest: str = ""
    folder: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "News":
        """What `write` wrote; nothing where there is no file. Raises ValueError for another file."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: expected news of a model, got something else ({error}): delete it") from None

    def write(self, file: Path) -> None:
        """Writes it, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.rename(file)


def news_file(models: Path, name: str) -> Path:
    """Where the news of a model are, beside its versions."""
    return models / f"{name}.news.json"


def look(uri: str, name: str, models: Path, known: News, check: Callable[[Version], None]) -> News:
    """The news after a look into the registry, where the alias champion may have moved.

    check: raises ValueError for a version that cannot be used, which is then refused, as is one whose files are not those that
    were recorded. Raises what the registry raises where it cannot be asked or has no such model or no files of it; nothing is
    known then that was not before.
    """
    version, digest = newest(uri, name)
    if (version, digest) == (known.version, known.digest) or str(version) in known.refused:
        return known
    try:
        found = resolve(uri, name, into=models)
        check(found)
    except ValueError as error:
        return replace(known, refused=dict([*known.refused.items(), (str(version), reason_of(error))][-100:]))
    return replace(known, version=found.version, digest=found.digest, folder=found.folder.name)


def reason_of(error: Exception) -> str:
    """What an error says, in a line, and its notes."""
    return "\n".join([" ".join(str(error).split()), *getattr(error, "__notes__", ())])


def sample(spec: ModelSpec, reference: Reference | None) -> Matrix:
    """Rows [64, K] such as the model was made from: numbers at the quantiles of its reference, or their medians, or
    standard normal, each value of a category, and numbers from 0 to 1 in vectors. Nothing is missing."""
    rng = np.random.default_rng(0)
    columns = []
    for each in spec.inputs:
        if each.kind == "vector":
            columns.append(rng.random((SAMPLE_ROWS, each.width)))
            continue
        values = np.arange(len(each.vocabulary) + 1.0) if each.kind == "category" else rng.normal(size=SAMPLE_ROWS)
        if each.name in spec.medians:
            values = np.array([spec.medians[each.name]])
        if each.kind == "number" and reference is not None and each.name in reference.names:
            edges = reference.edges[reference.names.index(each.name)]
            values = edges[np.isfinite(edges)] if np.isfinite(edges).any() else values
        columns.append(np.resize(rng.permutation(values), SAMPLE_ROWS)[:, None])
    return np.concatenate(columns, axis=1).astype(np.float32)


def check_engine(version: Version, threads: int, needs_reference: bool) -> dict[int, float]:
    """Loads a version, warms it, has it score its own sample, and returns how long it takes (Engine.profile).

    Raises ModelRefused for what cannot be loaded, and for a score that is no number, ValueError for a missing reference.
    """
    engine = OnnxEngine(version.folder, threads=threads)
    try:
        reference = Reference.load(version.folder) if (version.folder / "reference.json").exists() else None
        if reference is None and needs_reference:
            raise ValueError(f"{version.folder}: it has no reference profile to measure drift from")
        engine.warm()
        scores = engine.infer(sample(engine.spec, reference))
        if wrong := int((~np.isfinite(scores)).reshape(len(scores), -1).any(axis=1).sum()):
            raise ModelRefused(
                f"{version.folder}: expected scores, got none (NaN or infinite) for {wrong} of {len(scores)} rows"
            )
        return engine.profile((1, 64, 1024))
    finally:
        engine.close()
