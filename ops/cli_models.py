"""headrace models register | list | promote | rollback | shadow | diff | tensorrt."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ops.cli_state import Home, Json

models = typer.Typer(rich_markup_mode=None, help="The models in the registry.")
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="of the model, as in the pipeline's Model(NAME)")]


def _settings(home: Path | None) -> Any:
    from ops.cli import settings_of

    return settings_of(home=home)


def _pipeline(name: str) -> Any:
    from ops.cli import pipeline_of

    return pipeline_of(name)


@models.command()
def register(
    name: ModelName,
    onnx: Annotated[Path, typer.Option(help="the model: one score a row, or the probabilities of two classes")],
    reference: Annotated[
        Path, typer.Option(help="Parquet: event_time and a column for each input, in the model's order, of some weeks")
    ],
    pipeline: Annotated[
        str | None, typer.Option(help="PATH.py:NAME, to check the inputs against its features", show_default=False)
    ] = None,
    champion: Annotated[bool, typer.Option("--champion", help="use it from now on")] = False,
    output: Annotated[str, typer.Option(help="the ONNX output with the score, where there are several")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Record a model that was trained elsewhere, with the profile of a reference frame to measure drift from."""
    from ops.register import register as register_model

    settings = _settings(home)
    loaded = _pipeline(pipeline) if pipeline else None
    made = register_model(name, onnx, reference, settings, pipeline=loaded, champion=champion, output=output)
    version = made.version
    if as_json:
        result = {"model": name, "version": version.version, "digest": version.digest, "champion": champion}
        print(json.dumps(result | {"metrics": made.metrics, "registry": settings.registry_uri}))
        return
    print(f"{name} version {version.version} is {'champion' if champion else 'recorded'}, digest {version.digest[:16]}")
    print("  inputs: " + ", ".join(f"{each.name} ({each.kind})" for each in made.inputs))
    if made.unused:
        print(f"  features that it does not use: {', '.join(made.unused)}")
    if made.unscored:
        print(f"  {made.unscored:,} rows of the reference got no score (NaN): there the policy's fallback decides")
    for metric, value in made.metrics.items():
        print(f"  {metric} {value:.4g} on the reference frame")


@models.command("list")
def list_models(name: ModelName, home: Home = None, as_json: Json = False) -> None:
    """List the versions of a model, the newest first: which one is champion, what their training measured, what is refused."""
    from dataclasses import asdict

    from models.news import News, key
    from models.registry import versions

    settings = _settings(home)
    refused: dict[str, str] = {}
    for file in (settings.home / "models").glob("*.news.json"):
        news = News.read(file)
        refused |= news.refused if news.model == name else {}
    found = versions(settings.registry_uri, name)
    reasons = [refused.get(key(one.version, one.digest)) for one in found]
    if as_json:
        rows = [
            asdict(one) | {"made_at": one.made_at.isoformat(), "refused": why} for one, why in zip(found, reasons, strict=True)
        ]
        print(json.dumps(rows))
        return
    for one, why in zip(found, reasons, strict=True):
        metrics = "".join(f"  {metric} {value:.4g}" for metric, value in one.metrics.items())
        reason = f"  refused: {why.splitlines()[0]}" if why else ""
        aliases = f"  {', '.join(one.aliases)}" if one.aliases else ""
        print(f"{one.version:4}  {one.made_at:%Y-%m-%d %H:%M}  {one.digest[:16]}{aliases}{metrics}{reason}")


@models.command()
def promote(
    name: ModelName, version: Annotated[int, typer.Argument(min=1, help="its number")], home: Home = None, as_json: Json = False
) -> None:
    """Make a version the champion. A job that runs finds it, checks it, and swaps (HEADRACE_MODEL_LOOK_SECONDS)."""
    from models.registry import promote as make_champion

    before = make_champion(_settings(home).registry_uri, name, version)
    _champion(name, version, before, as_json)


@models.command()
def rollback(name: ModelName, home: Home = None, as_json: Json = False) -> None:
    """Make the previous champion the champion again."""
    from models.registry import rollback as back

    version, before = back(_settings(home).registry_uri, name)
    _champion(name, version, before, as_json)


@models.command()
def shadow(
    name: ModelName,
    version: Annotated[int | None, typer.Argument(min=1, help="its number", show_default=False)] = None,
    off: Annotated[bool, typer.Option("--off", help="have none any more")] = False,
    home: Home = None,
) -> None:
    """Have a version score what the champion decides on, beside it: headrace models diff compares."""
    from models.registry import shadow as set_shadow

    if (version is None) != off:
        raise typer.BadParameter("expected a version, or --off")
    set_shadow(_settings(home).registry_uri, name, version)
    print(f"{name} has no shadow any more" if version is None else f"{name} version {version} is shadow")


@models.command()
def diff(name: ModelName, home: Home = None, as_json: Json = False) -> None:
    """Say how the scores and decisions of a model's shadow compare with the champion's."""
    from models.news import News
    from models.shadow import Compared, lines, shadow_folder

    folder = _settings(home).home / "models"
    found = {
        pipeline: compared
        for file in sorted(folder.glob("*.news.json"))
        if News.read(file).model == name
        and (compared := Compared.read(shadow_folder(folder, pipeline := file.name.removesuffix(".news.json"))))
    }
    if as_json:
        print(json.dumps({"model": name, "pipelines": {key: each.as_dict() for key, each in found.items()}}))
    for pipeline, compared in () if as_json else found.items():
        print(*(f"pipeline {pipeline}", *lines(name, compared)), sep="\n")
    if not found:
        report_missing = f"{name}: no shadow has scored anything: headrace models shadow {name} VERSION, while a job runs"
        print(report_missing, file=sys.stderr)
        raise typer.Exit(1)


@models.command()
def tensorrt(
    name: ModelName,
    precision: Annotated[str, typer.Option(help="fp32, or fp16, int8 where scores are the same to 0.002, 0.01")] = "fp32",
    capability: Annotated[list[str] | None, typer.Option(help="SM80, SM89, SM120, ...  [default: these]")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine of the champion, on any machine, into models/engines of the home; say its layers and sizes."""
    from dataclasses import asdict

    from models.registry import resolve
    from models.tensorrt import CAPABILITIES, PRECISIONS, cached

    if precision not in PRECISIONS:
        raise typer.BadParameter(f"expected a precision of {' or '.join(PRECISIONS)}, got {precision}")
    settings = _settings(home)
    version = resolve(settings.registry_uri, name, into=settings.home / "models")
    chosen = tuple(capability or CAPABILITIES)
    engines = version.folder.parent / "engines"
    _, plan = cached(version.folder, version.digest, engines, precision=precision, capabilities=chosen)
    if as_json:
        print(json.dumps(asdict(plan) | {"version": version.version}))
        return
    print(f"{name} version {version.version} by {plan.library}, {plan.precision}, for {', '.join(plan.capabilities)}")
    print(f"  {plan.size:,} bytes, {plan.weights:,} of weights, built in {plan.seconds:.1f} s")
    print(f"  batches of {', '.join(map(str, plan.buckets))} rows")
    for layer in plan.layers:
        print(f"  {layer.kind.lower():20} {layer.precision.lower():6} {layer.name}")


def _champion(name: str, version: int, before: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"model": name, "champion": version, "previous": before or None}))
        return
    print(f"{name} version {version} is champion{f', version {before} was' if before and before != version else ''}")
