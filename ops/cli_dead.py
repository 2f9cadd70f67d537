"""headrace dead list | export | replay."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ops.cli_state import Json, Name

dead = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Messages that could not be decoded.")

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
Brokers = Annotated[str | None, typer.Option(help="Kafka bootstrap servers  [default: 127.0.0.1:9092]", show_default=False)]
Codes = Annotated[list[str] | None, typer.Option("--code", help="only with this code; may be given several times")]
Partitions = Annotated[list[int] | None, typer.Option("--partition", help="only of messages of this partition of the events")]
From = Annotated[datetime | None, typer.Option("--from", formats=TIMES, help="only letters written since, UTC")]
To = Annotated[datetime | None, typer.Option("--to", formats=TIMES, help="only letters written before, UTC")]
Left = Annotated[bool, typer.Option("--left", help="only those that were not sent again, or have come back")]
Unchecked = Annotated[bool, typer.Option("--unchecked", help="send also what was sent again before")]


def _loaded(pipeline: str, brokers: str | None) -> tuple[Any, Any]:
    from ops.cli import pipeline_of, settings_of

    return pipeline_of(pipeline), settings_of(brokers=brokers)


def _wanted(codes: list[str] | None, partitions: list[int] | None, start: datetime | None, end: datetime | None) -> Any:
    from ops.dead import Wanted

    start, end = (None if at is None else at.replace(tzinfo=UTC) for at in (start, end))
    return Wanted(codes or (), partitions or (), start, end)


def _found(pipeline: str, loaded: Any, settings: Any, wanted: Any, left: bool, bodies: bool = True) -> Any:
    from ops.dead import letters, sent_again

    found = letters(loaded, settings, wanted, pipeline, bodies)
    again = sent_again(loaded, settings, found) if left else {}
    return [letter for letter in found if letter.place not in again]


@dead.command("list")
def list_letters(
    pipeline: Name,
    code: Codes = None,
    partition: Partitions = None,
    start: From = None,
    end: To = None,
    left: Left = False,
    most: Annotated[int, typer.Option(min=1, help="letters shown, the last written; --json gives all")] = 50,
    brokers: Brokers = None,
    as_json: Json = False,
) -> None:
    """Show the dead letters of a pipeline's topic, the last about each message, and count them by code."""
    from ops.dead import counted, table, told

    loaded, settings = _loaded(pipeline, brokers)
    found = _found(pipeline, loaded, settings, _wanted(code, partition, start, end), left, bodies=as_json)
    if as_json:
        print(json.dumps({"topic": loaded.events.dead, "codes": counted(found), "letters": [told(one) for one in found]}))
        return
    print(*table(found, most), sep="\n")


@dead.command()
def export(
    pipeline: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="that is made: a JSON object a line, to be corrected")],
    code: Codes = None,
    partition: Partitions = None,
    start: From = None,
    end: To = None,
    left: Left = False,
    opened: Annotated[bool, typer.Option("--open", help="decrypt what is encrypted, with dead_letter_key")] = False,
    brokers: Brokers = None,
) -> None:
    """Write dead letters to a file, to correct each `value` (or take the line out) and send them again with replay."""
    from ops.dead import export as write

    loaded, settings = _loaded(pipeline, brokers)
    count = write(_found(pipeline, loaded, settings, _wanted(code, partition, start, end), left), file, settings, opened)
    print(f"{file}: {count:,} dead letters; correct them, then: headrace dead replay {pipeline} {file}")


@dead.command()
def replay(
    pipeline: Name,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="of export, corrected", show_default=False)] = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="send letters unchanged: those that can be decoded by now")] = False,
    code: Codes = None,
    partition: Partitions = None,
    start: From = None,
    end: To = None,
    unchecked: Unchecked = False,
    brokers: Brokers = None,
    as_json: Json = False,
) -> None:
    """Send dead letters back to the topic of events, to be decided under the ids of the messages that failed."""
    from ops.cli import WrongUseError
    from ops.dead_replay import lines, replay_as_is, replay_file

    if (file is None) != as_is:
        raise WrongUseError("dead replay: expected either FILE or --as-is")
    if file is not None and (code or partition or start or end):
        raise WrongUseError("dead replay FILE: expected no --code, --partition, --from or --to, which are for --as-is")
    loaded, settings = _loaded(pipeline, brokers)
    if file is not None:
        done = replay_file(loaded, settings, file, pipeline, unchecked)
    else:
        done = replay_as_is(loaded, settings, _wanted(code, partition, start, end), pipeline, unchecked)
    if as_json:
        counts = {"sent": len(done.sent), "before": len(done.before), "failing": done.failing, "gone": len(done.gone)}
        print(json.dumps(counts))
        return
    print(*lines(loaded, done), sep="\n")
