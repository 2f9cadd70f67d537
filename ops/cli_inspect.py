"""headrace inspect."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ops.cli_dead import Brokers
from ops.cli_state import Home, Json


def inspect(
    decision_id: Annotated[
        str, typer.Argument(metavar="DECISION_ID", help="PIPELINE/TOPIC/PARTITION/OFFSET, as in the decision")
    ],
    pipeline: Annotated[
        str | None,
        typer.Option(help="PATH.py:NAME, to read the event with  [default: the pipeline's name in the id]", show_default=False),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="the folder of the record  [default: the pipeline's own]", show_default=False)
    ] = None,
    no_event: Annotated[bool, typer.Option("--no-event", help="do not ask Kafka for the event")] = False,
    brokers: Brokers = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say how an event came to its decision, from the record: its position, times, features, model, score and reasons."""
    from ops.cli import WrongUseError, settings_of
    from ops.explain import Event, NotAnIdError, Place, event_of, lines, recorded, whole
    from streams.pipeline import Record

    try:
        place = Place.of(decision_id)
    except NotAnIdError as error:
        raise WrongUseError(str(error)) from None
    settings = settings_of(brokers=brokers, home=home)
    loaded, why = _loaded(pipeline, place.pipeline)
    said = (loaded and loaded.record) or Record()
    row = recorded(place, record or said.folder(settings.home, place.pipeline))
    if no_event:
        event = Event("unread", "--no-event")
    else:
        event = event_of(place, row, loaded, settings) if loaded else Event("unread", why)
    found = whole(row, event)
    print(json.dumps(found) if as_json else "\n".join(lines(found)))


def _loaded(named: str | None, name: str) -> tuple[Any, str]:
    """The pipeline that is named, or one of our own of that name; where there is none, None and why its events are not read."""
    from ops.cli import BrokenPipelineError, WrongUseError, pipeline_of

    unnamed = f"how, and what in it is secret, is in the file of pipeline {name}: --pipeline PATH.py:NAME names it"
    if not named and (":" in name or name.endswith(".py")):
        return None, unnamed  # an id names no file to run
    try:
        found = pipeline_of(named or name)
    except BrokenPipelineError as error:
        if named:
            raise
        return None, str(error)
    except WrongUseError:
        if named:
            raise
        return None, unnamed
    if found.name == name:
        return found, ""
    raise WrongUseError(f"--pipeline {named or name}: expected pipeline {name}, as in the id, got {found.name}")
