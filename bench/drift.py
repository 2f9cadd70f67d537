"""Does drift keep its promises on the model in use? `python -m bench.drift [--json FILE] [--rate RATE] [--frame FILE]`

On the champion's own inputs and scores: the share of days that alarm in months left out of the reference, beside the rate
that was set; the days after the reference; and how soon a shift of half a standard deviation in one feature is found. Ends
with 1 where a promise is broken.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kernels.histogram.cpu import histogram
from models.engine import Engine, OnnxEngine
from models.reference import DAY_US, Judgement, Reference, blocks, build_reference, judge
from models.registry import resolve
from models.spec import assemble
from ops.train import frame
from streams.pipeline import Pipeline, load
from streams.settings import JobSettings

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
SHIFT = 0.5
SOON = 3
WIDE = 34


@dataclass(frozen=True)
class Rows:
    """What a model was given and what it said: matrix f32 [n, F], scores f32 [n], day i64 [n] since 1970, in any order."""

    names: tuple[str, ...]
    categorical: tuple[bool, ...]
    matrix: F32
    scores: F32
    times_us: I64

    @property
    def day(self) -> I64:
        return self.times_us // DAY_US

    def where(self, kept: npt.NDArray[np.bool_]) -> "Rows":
        return Rows(self.names, self.categorical, self.matrix[kept], self.scores[kept], self.times_us[kept])

    def reference(self) -> Reference:
        return build_reference(self.names, self.categorical, self.matrix, self.scores, self.times_us)

    def days(self, least: int = 100) -> "Iterator[Rows]":
        """The rows of each day that has at least `least`."""
        for day, count in zip(*np.unique(self.day, return_counts=True), strict=True):
            if count >= least:
                yield self.where(self.day == day)


def scored(frame: pa.Table, engine: Engine) -> Rows:
    """A training frame as the engine's model is given it, with its scores."""
    batch = frame.combine_chunks().to_batches()[0]
    matrix, _ = assemble(batch, engine.spec)
    times = frame["event_time"].cast(pa.int64()).combine_chunks().to_numpy()
    categorical = tuple(each.kind == "category" for each in engine.spec.inputs)
    return Rows(engine.spec.names, categorical, matrix, engine.infer(matrix), times)


def months(rows: Rows, reference: Reference) -> list[tuple[str, Rows, Reference]]:
    """Each month of the reference's days: its name, its rows, and the reference made of all the other months."""
    inside = rows.where(np.isin(rows.day, reference.days))
    block = blocks(inside.day)
    held = []
    for each in np.unique(block):
        part = inside.where(block == each)
        held.append((_month(part), part, inside.where(block != each).reference()))
    return held


def held_out(held: Sequence[tuple[str, Rows, Reference]], rate: float) -> list[dict[str, Any]]:
    """For each month left out: its days, how many alarmed, and on what, by the reference and thresholds of the others."""
    return [{"month": name, **_alarms(part, reference, rate)} for name, part, reference in held]


def afterwards(rows: Rows, reference: Reference, rate: float) -> list[dict[str, Any]]:
    """The same for each month after the reference's last day, by the whole reference."""
    later = rows.where(rows.day > reference.days[-1])
    month = later.day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    parts = [later.where(month == each) for each in np.unique(month)]
    found = [{"month": _month(part), **_alarms(part, reference, rate)} for part in parts]
    return [each for each in found if each["days"]]


def planted(rows: Rows, held: Sequence[tuple[str, Rows, Reference]], rate: float) -> list[dict[str, Any]]:
    """For each number: half of its standard deviation added to it in each month left out, from the month's first day on.

    found: the share of days on which it alarms; before: the same without the shift; first: the day of the month on which it
    first alarms, the median over the months (None where most months never do); others: days x features x statistics that
    changed elsewhere, which must be none.
    """
    judged = [(part, reference, reference.thresholds(rate)) for _, part, reference in held]
    table = []
    for place, name in enumerate(rows.names):
        if rows.categorical[place]:
            continue
        shift = np.float32(SHIFT * np.nanstd(rows.matrix[:, place].astype(np.float64)))
        found, before, first, others = [], [], [], 0
        for part, reference, thresholds in judged:
            hits = []
            for day in part.days():
                counts = reference.count(day.matrix, day.scores)
                moved = counts.copy()
                moved[place] = 0
                histogram(day.matrix[:, [place]] + shift, reference.edges[[place]], moved[place : place + 1])
                plain, told = judge(reference, counts, thresholds), judge(reference, moved, thresholds)
                here = np.array(told.feature) == name
                hits.append(bool(told.alarmed[here].any()))
                before.append(bool(plain.alarmed[here].any()))
                others += int((plain.value[~here] != told.value[~here]).sum())
            found += hits
            first.append(hits.index(True) + 1 if any(hits) else np.inf)
        median = float(np.median(first))
        table.append(
            {
                "feature": name,
                "shift": float(shift),
                "found": float(np.mean(found)),
                "before": float(np.mean(before)),
                "first": None if np.isinf(median) else median,
                "others": others,
            }
        )
    return table


def measure(rows: Rows, reference: Reference, rate: float) -> dict[str, Any]:
    """Everything, as the tables and the JSON have it. `rows` holds the reference's days and those after them."""
    held = months(rows, reference)
    out, shifted = held_out(held, rate), planted(rows.where(np.isin(rows.day, reference.days)), held, rate)
    share = sum(month["alarmed"] for month in out) / sum(month["days"] for month in out)
    soon = [each["feature"] for each in shifted if each["first"] is not None and each["first"] <= SOON]
    return {
        "rate": rate,
        "first_day": _date(reference.days[0]),
        "last_day": _date(reference.days[-1]),
        "held_out": out,
        "held_out_share": share,
        "afterwards": afterwards(rows, reference, rate),
        "planted": shifted,
        "promises": {
            "held_out_at_most_twice_the_rate": share <= 2 * rate,
            "planted_found_soon_in": soon,
            "planted_touches_no_other": all(each["others"] == 0 for each in shifted),
        },
    }


def tables(measured: dict[str, Any]) -> str:
    """What was measured, for people."""
    rate = measured["rate"]
    lines = [f"Reference {measured['first_day']} to {measured['last_day']}, rate set {rate:.1%} of days, all features together"]
    for title, key in (("Months left out in turn", "held_out"), ("After the reference", "afterwards")):
        lines += ["", f"{title:{WIDE}} days  alarmed   share  on"]
        for each in measured[key]:
            share = f"{each['alarmed'] / each['days']:7.1%}"
            features = ", ".join(f"{name} {days}" for name, days in each["features"].items())
            lines.append(f"{each['month']:{WIDE}} {each['days']:4}  {each['alarmed']:7}  {share}  {features}")
    lines += ["", f"{'Half a deviation added to':{WIDE}} days found  unshifted  first found on day (median)"]
    for each in measured["planted"]:
        first = "not seen: its days differ by more" if each["first"] is None else f"{each['first']:g}"
        lines.append(f"{each['feature']:{WIDE}} {each['found']:10.1%}  {each['before']:9.1%}  {first}")
    promises = measured["promises"]
    soon = ", ".join(promises["planted_found_soon_in"]) or "none"
    return "\n".join(
        [
            *lines,
            "",
            f"{_kept(promises['held_out_at_most_twice_the_rate'])}: {measured['held_out_share']:.2%} of the days left out "
            f"alarm, twice the rate is {2 * rate:.2%}",
            f"{_kept(bool(promises['planted_found_soon_in']))}: half a deviation is found within {SOON} days in {soon}",
            f"{_kept(promises['planted_touches_no_other'])}: it changes no other feature's statistics",
        ]
    )


def champion(pipeline: Pipeline, settings: JobSettings) -> tuple[Engine, Reference]:
    """The engine and the reference of the pipeline's model in the registry."""
    version = resolve(settings.registry_uri, pipeline.model.name, into=settings.home / "models")
    return OnnxEngine(version.folder), Reference.load(version.folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.drift", description=__doc__)
    parser.add_argument("--pipeline", default="flights", help="one of ours, or PATH.py:NAME")
    parser.add_argument("--frame", type=Path, help="its training frame over all its history, as Parquet")
    parser.add_argument("--rate", type=float, help="the rate to set; default: the pipeline's")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    chosen = parser.parse_args(arguments)
    pipeline, settings = load(chosen.pipeline), JobSettings()
    engine, reference = champion(pipeline, settings)
    rate = chosen.rate or (pipeline.drift.rate if pipeline.drift else 0.02)
    if pipeline.model.history is None and chosen.frame is None:
        parser.error(f"pipeline {pipeline.name}: its model has no history to make a frame of: give one with --frame")
    if chosen.frame:
        rows = pq.read_table(chosen.frame)
    else:
        assert pipeline.model.history is not None
        print("computing the features of the whole history", file=sys.stderr, flush=True)
        rows = frame(pipeline, settings, pipeline.model.history())
    print("judging every day, in every month left out", file=sys.stderr, flush=True)
    measured = measure(scored(rows, engine), reference, rate)
    print(tables(measured))
    if chosen.json:
        chosen.json.write_text(json.dumps(measured, indent=2) + "\n")
    promises = measured["promises"]
    return 0 if all(promises.values()) else 1


def _alarms(part: Rows, reference: Reference, rate: float) -> dict[str, Any]:
    thresholds = reference.thresholds(rate)
    judged = [judge(reference, reference.count(day.matrix, day.scores), thresholds) for day in part.days()]
    on: dict[str, int] = {}
    for each in judged:
        for name in _alarmed(each):
            on[name] = on.get(name, 0) + 1
    features = dict(sorted(on.items(), key=lambda item: -item[1]))
    return {"days": len(judged), "alarmed": sum(bool(each.alarmed.any()) for each in judged), "features": features}


def _alarmed(judgement: Judgement) -> set[str]:
    return {name for name, alarmed in zip(judgement.feature, judgement.alarmed, strict=True) if alarmed}


def _month(part: Rows) -> str:
    return str(part.day.min().astype("datetime64[D]").astype("datetime64[M]"))


def _date(day: Any) -> str:
    return str(np.int64(day).astype("datetime64[D]"))


def _kept(promise: bool) -> str:
    return "kept" if promise else "BROKEN"


if __name__ == "__main__":
    sys.exit(main())
