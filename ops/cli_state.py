"""headrace state [show] | check | export | migrate | move | drop."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Name = Annotated[str, typer.Argument(metavar="PIPELINE", help="PATH.py:NAME, PATH.py of a file with one pipeline, or flights")]
Home = Annotated[Path | None, typer.Option(help="where the job keeps what it keeps  [default: .headrace]", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


class ShowUnlessSaid(TyperGroup):
    """`headrace state PIPELINE` is `headrace state show PIPELINE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `show` before what is no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


state = typer.Typer(
    cls=ShowUnlessSaid,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="A pipeline's recovery store: its positions and state.",
)


def _loaded(pipeline: str, home: Path | None, **flags: Any) -> tuple[Any, Any]:
    from ops.cli import pipeline_of, settings_of

    return pipeline_of(pipeline), settings_of(home=home, **flags)


@state.command()
def show(pipeline: Name, home: Home = None, as_json: Json = False) -> None:
    """Say what the store holds and takes, and whether the pipeline as it is goes on with it. A job may be running on it."""
    from ops.state_store import look, tell

    loaded, settings = _loaded(pipeline, home)
    found = look(loaded, settings, pipeline)
    print(json.dumps(found) if as_json else tell(found))


@state.command()
def check(pipeline: Name, home: Home = None, as_json: Json = False) -> None:
    """Say whether the pipeline as it is goes on with its store, or needs none; else exit code 1, what differs and what to do.

    Nothing is written, and a job may be running on it: another version of a pipeline is tried so before it takes over.
    """
    from ops.state_store import verdict
    from streams.start import RecoveryError

    loaded, settings = _loaded(pipeline, home)
    found = verdict(loaded, settings, pipeline)
    if as_json:
        print(json.dumps(found))
        raise typer.Exit(0 if found["goes_on"] else 1)
    if not found["goes_on"]:
        raise RecoveryError(found["differs"])
    print(f"{loaded.name}: " + (f"goes on with {found['store']}" if found["store"] else "there is no store to go on with"))


@state.command()
def migrate(
    pipeline: Name,
    partitions: Annotated[
        int, typer.Option(min=0, max=64, help="files that the store is spread over  [default: as it has]", show_default=False)
    ] = 0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write the store of a job that is stopped anew, with the pipeline's number of shards and so many partitions.

    Without reading the topic; the job then goes on where it was. What is replaced or free is left out. The store that was there
    is kept as NAME.old. What needs the topic is refused.
    """
    from dataclasses import asdict

    from streams.migrate import migrate as write_anew

    loaded, settings = _loaded(pipeline, home)
    made = write_anew(loaded, settings, pipeline, partitions)
    if as_json:
        print(json.dumps(asdict(made)))
        return
    pairs = {"shards": made.shards, "partitions": made.partitions, "bytes": made.nbytes}
    print(f"{loaded.name}: " + ", ".join(f"{before:,} → {after:,} {what}" for what, (before, after) in pairs.items()))


@state.command()
def export(
    pipeline: Name,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="of the files; made if it is not there")],
    at: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%dT%H:%M:%S"], help="features at this time, UTC  [default: the last update's]"),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write state and positions as files that anyone may read: store.json, and Parquet with a row for each entity.

    What is in it are hashes of the entities, not the entities. A job may be running meanwhile.
    """
    from ops.state_export import export as write

    loaded, settings = _loaded(pipeline, home)
    rows = write(loaded, settings, pipeline, folder, at.replace(tzinfo=UTC) if at else None)
    if as_json:
        print(json.dumps({"folder": str(folder), "rows": rows}))
        return
    print(f"{folder}: store.json" + "".join(f", {entity}.parquet ({count:,} entities)" for entity, count in rows.items()))


@state.command()
def move(
    pipeline: Name,
    to: Annotated[list[Path], typer.Option(help="the home it is moved to; given several times, partitions are dealt out")],
    sources: Annotated[
        list[Path] | None, typer.Option("--from", help="the homes it is in  [default: --home]", show_default=False)
    ] = None,
    partitions: Annotated[
        int, typer.Option(min=0, max=64, help="make as many of it first  [default: as it has]", show_default=False)
    ] = 0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Bring the store of a job that is stopped to another home, or its partitions to several, one for each pod, say, or back.

    The store that was there is kept as NAME.old.
    """
    from ops.state_move import move as bring

    loaded, settings = _loaded(pipeline, home)
    dealt = bring(loaded, settings, pipeline, sources or [], to, partitions)
    if as_json:
        print(json.dumps(dealt))
        return
    for place, numbers in dealt.items():
        print(f"{place}: partition{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}")


@state.command()
def drop(
    pipeline: Name,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    home: Home = None,
) -> None:
    """Take the store of a job that is stopped away; says what is lost, and asks. It is kept as NAME.old."""
    from ops.state_move import drop as take_away
    from ops.state_move import lost

    loaded, settings = _loaded(pipeline, home)
    print(lost(loaded, settings, pipeline))
    if not yes:
        typer.confirm("drop it?", abort=True)
    print(f"kept as {take_away(loaded, settings)}, until another takes its place")
