"""What is known of a model's newest versions: found beside the jobs, and told to them in a file.

A registry is a large library and sometimes slow, a new version has to be fetched, checked and tried: none of that belongs into
a process that decides. One process of its own looks (`look`), and the jobs read what it wrote.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.engine import Engine, Matrix, ModelRefused, mapped
from models.files import write_whole
from models.mapped import tidy_mapped
from models.reference import SCORE, Reference
from models.registry import Version, newest, resolve
from models.spec import ModelSpec, state

log = logging.getLogger(__name__)

SAMPLE_ROWS = 64


class Good(NamedTuple):
    """A version that was checked: its number, its digest, the name of its folder, and the `state_of` that folder, by which who
    loads it need not digest it again; empty: not known."""

    version: int
    digest: str
    folder: str
    state: str = ""


@dataclass(frozen=True)
class News:
    """What a pipeline may know of its model: good, the version to use and the one before it, and refused, why others are not
    used, by `key`."""

    model: str = ""
    good: tuple[Good, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "News":
        """What `write` wrote; nothing where there is no such file: the next look makes it anew."""
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            return cls(str(said["model"]), tuple(Good(*each) for each in said["good"]), dict(said["refused"]))
        except FileNotFoundError:
            return cls()
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            log.warning("model: %s is not what a look has written, and counts as none: %s", file, error)
            return cls()

    def of(self, model: str) -> "News":
        """The news, if they are of that model; else none: the pipeline had another one before."""
        return self if self.model == model else News(model)

    def write(self, file: Path) -> None:
        """Writes it, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(self)))


def key(version: int, digest: str) -> str:
    """What a version is called among those that are refused."""
    return f"{version}-{digest[:12]}"


def news_file(models: Path, pipeline: str) -> Path:
    """Where the news for a pipeline are, beside the versions."""
    return models / f"{pipeline}.news.json"


def look(uri: str, name: str, models: Path, known: News, check: Callable[[Version], None]) -> News:
    """The news after a look into the registry, where the alias champion may have moved.

    check: raises ValueError for a version that cannot be used, which is then refused, as is one whose files are not those that
    were recorded. Raises what the registry raises where it cannot be asked or has no such model or no files of it; nothing is
    known then that was not before.
    """
    version, digest = newest(uri, name)
    called = key(version, digest)
    if called in known.refused or (known.good and known.good[0][:2] == (version, digest)):
        return known
    try:
        found = resolve(uri, name, into=models)
        digested = state(found.folder)
        check(found)
        now = state_of(found.folder) if state(found.folder) == digested else ""
    except ValueError as error:
        tidy_mapped(models, name, [each.folder for each in known.good])
        return News(name, known.good, dict([*known.refused.items(), (called, reason_of(error))][-100:]))
    good = Good(found.version, found.digest, found.folder.name, now)
    of_both = (good, *(each for each in known.good if each[:2] != good[:2]))[:2]
    tidy_mapped(models, name, [each.folder for each in of_both])
    return News(name, of_both, known.refused)


def state_of(folder: Path) -> str:
    """The state (models.spec.state) of a version's files, and of what was made from them."""
    return state(folder, mapped(folder))


def reason_of(error: Exception) -> str:
    """What an error says, in a line, and its notes."""
    return "\n".join([" ".join(str(error).split()), *getattr(error, "__notes__", ())])


def sample(spec: ModelSpec, reference: Reference | None) -> Matrix:
    """Rows [64, K] such as the model was made from: numbers at the quantiles of its reference, or their medians, or
    standard normal, each value of a category, buckets at random, and numbers from 0 to 1 in vectors. Nothing is missing."""
    rng = np.random.default_rng(0)
    columns = []
    for each in spec.inputs:
        if each.kind == "vector":
            columns.append(rng.random((SAMPLE_ROWS, each.width)))
            continue
        if each.kind == "category":
            values = np.arange(len(each.vocabulary) + 1.0)
        elif each.kind == "hashed":
            values = rng.integers(each.buckets, size=SAMPLE_ROWS).astype(np.float64)
        else:
            values = rng.normal(size=SAMPLE_ROWS)
        if each.name in spec.medians:
            values = np.array([spec.medians[each.name]])
        if each.kind == "number" and reference is not None and each.name in reference.names:
            edges = reference.edges[reference.names.index(each.name)]
            values = edges[np.isfinite(edges)] if np.isfinite(edges).any() else values
        columns.append(np.resize(rng.permutation(values), SAMPLE_ROWS)[:, None])
    return np.concatenate(columns, axis=1).astype(np.float32)


def loaded(
    folder: Path, load: Callable[..., Engine], needs_reference: bool, checked: bool = False
) -> tuple[Engine, Reference | None]:
    """A version from its files: its engine, warm, and its reference, if it is needed. load: Model.load of a pipeline. checked:
    see models.engine.Load.

    Raises ModelRefused, whatever it is that fails.
    """
    try:
        engine = load(folder, checked=checked)
        reference = Reference.load(folder) if needs_reference else None
        if reference is not None and reference.names != (*engine.spec.names, SCORE):
            got = ", ".join(reference.names)
            raise ModelRefused(f"{folder}: its reference profile is of other inputs than it has, and their score: {got}")
        engine.warm()
    except ModelRefused:
        raise
    except FileNotFoundError as error:
        missing = Path(error.filename or "").name
        what = f"no reference profile to measure drift from ({missing})" if missing.startswith("reference") else f"no {missing}"
        raise ModelRefused(f"{folder}: it has {what}") from None
    except Exception as error:
        raise ModelRefused(f"{folder}: it cannot be used: {type(error).__name__}: {error}") from error
    return engine, reference


def try_out(engine: Engine, reference: Reference | None) -> dict[int, float]:
    """Has a model score its own sample; returns how long it takes (Engine.profile). Raises ModelRefused where it throws, or
    gives most of the rows no number."""
    name = engine.spec.name
    try:
        scores = engine.infer(sample(engine.spec, reference))
    except Exception as error:
        raise ModelRefused(f"model {name}: it throws at its own sample: {type(error).__name__}: {error}") from error
    wrong = int((~np.isfinite(scores)).reshape(len(scores), -1).any(axis=1).sum())
    if wrong > len(scores) // 2:
        raise ModelRefused(
            f"model {name}: expected scores, got none (NaN or infinite) for {wrong} of {len(scores)} rows of its sample"
        )
    return engine.profile((1, 64, 1024))
