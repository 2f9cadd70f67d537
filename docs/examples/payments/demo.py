"""The example's whole way, and what came of it: `headrace demo payments` calls `main`.

Trains where there is no model yet, sends the held-out days through the job and an embedded broker, and judges the decisions, by
what the payments really were, beside those of simpler deciders.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from frauds import KINDS
from judge import HEADING, Found, best, best_rule, found, threshold
from learn import scored
from pipeline import payments
from samples import DAY, Size, held_out, truth, validation

from features.spec import Derived, Last, Window
from models.registry import ModelNotFound, resolve
from ops.train import frame, prepare_stored, train
from ops.trial import Trial, trial
from streams.pipeline import Pipeline
from streams.settings import JobSettings

Progress = Callable[[str, float], None]
REFUSED = "block"
NO_FEATURES = ("event_id", "event_time")


def main(settings: JobSettings, json_file: Path | None, progress: Progress, size: Size | None = None) -> str:
    """Runs it; returns what was found, for people, and writes it to json_file as numbers, if there is one."""
    size = size or Size()
    full = payments(size)
    plain = without_streaming(full)
    for pipeline in (full, plain):
        ready(pipeline, settings, progress)
    progress("choosing the threshold", 0.0)
    block = chosen(full, settings, size)
    full = payments(size, block)
    began = time.monotonic()
    tried = trial(full, settings, seed=0, progress=progress)
    progress("judging the decisions", 0.0)
    results = judged(full, plain, settings, size, tried)
    made = {"threshold": block, "events": tried.events, "seconds": tried.seconds, "found": [asdict(each) for each in results]}
    if json_file:
        json_file.write_text(json.dumps(made, indent=2) + "\n")
    return told(tried, results, size, block, time.monotonic() - began)


def without_streaming(pipeline: Pipeline) -> Pipeline:
    """The same pipeline and model without streaming features, and what is derived from them."""
    streaming = {name for feature in pipeline.features if isinstance(feature, Window | Last) for name in feature.names}
    kept = []
    for feature in pipeline.features:
        if isinstance(feature, Derived) and any(name in feature.expression for name in streaming):
            streaming.add(feature.name)
        elif not isinstance(feature, Window | Last):
            kept.append(feature)
    name = f"{pipeline.name}-plain"
    return replace(pipeline, name=name, features=kept, model=replace(pipeline.model, name=name))


def ready(pipeline: Pipeline, settings: JobSettings, progress: Progress) -> None:
    """Its stored features and its model: made if they are not there."""
    prepare_stored(pipeline, settings, progress)
    try:
        resolve(settings.registry_uri, pipeline.model.name, into=settings.home / "models")
    except ModelNotFound:
        progress(f"no model {pipeline.model.name} yet: training one", 0.0)
        train(pipeline, settings, seed=0, until=pipeline.model.trained_until, progress=progress)


def chosen(pipeline: Pipeline, settings: JobSettings, size: Size) -> float:
    """The threshold, chosen by what was reported of the validation world, without its first day. At most 1."""
    rows = after_first_day(frame(pipeline, settings, validation(size)))
    return min(1.0, threshold(scores_of(pipeline, settings, rows), rows["label"].to_numpy()))


def after_first_day(rows: pa.Table) -> pa.Table:
    """Without the first day, on which the windows fill."""
    at = rows["event_time"].to_numpy().astype(np.int64)
    return rows.filter(pa.array(at >= at.min() + DAY))


def judged(full: Pipeline, plain: Pipeline, settings: JobSettings, size: Size, tried: Trial) -> list[Found]:
    """What each decider finds on the held-out days but the first, on which the windows fill: what was decided, the model at its
    best threshold, the model without streaming features, the best rules."""
    ids, kinds = truth(size)
    rows = after_first_day(frame(full, settings, held_out(size)))
    kinds = kinds[np.searchsorted(ids, rows["event_id"].to_numpy())]
    decided = {each["event_id"]: each for each in tried.decisions}
    answers = [decided[id] for id in rows["event_id"].to_pylist()]
    scores = np.array([np.nan if each["score"] is None else each["score"] for each in answers])
    refused = np.array([each["decision"] == REFUSED for each in answers])
    numbers = [field.name for field in rows.schema if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)]
    return [
        found("decided: refused", refused, kinds),
        best("the model, any threshold", scores, kinds),
        best("the model without streaming features", scores_of(plain, settings, rows), kinds),
        *best_rule(rows, [name for name in numbers if name not in NO_FEATURES], kinds),
    ]


def scores_of(pipeline: Pipeline, settings: JobSettings, rows: pa.Table) -> npt.NDArray[np.float64]:
    """The scores that the pipeline's champion gives to a frame."""
    return scored(resolve(settings.registry_uri, pipeline.model.name, into=settings.home / "models").folder, rows)


def told(tried: Trial, results: list[Found], size: Size, block: float, seconds: float) -> str:
    """The results for people."""
    decided, hindsight, plain, rule, *of_kinds = results
    rate = tried.events / tried.seconds
    lines = [
        "",
        f"payments: {tried.events:,} payments of {size.held_out_cards:,} cards that the model never saw,",
        f"on {size.held_out_days} days a month later, by an embedded broker in {tried.seconds:.1f} s: {rate:,.0f} a second",
        f"({seconds:.0f} s with judging); refused from a score of {block:.3f} on, chosen on reports of a third world",
        "",
        "of what is refused, the share that is fraud; of each kind of fraud, the share that is refused; without the first day:",
        "",
        HEADING,
        decided.line(),
        "",
        "  with the threshold that finds most at a precision of 0.7, chosen in hindsight:",
        *(each.line() for each in (hindsight, plain, rule)),
        "  the best rule for each kind alone:",
        *(each.line() for each in of_kinds),
        "",
        "  fraud payments: " + ", ".join(f"{n:,} {name}" for name, n in zip(KINDS, decided.cases, strict=True)),
    ]
    return "\n".join(lines)
