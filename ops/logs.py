"""What a job says of itself: lines for people, or, where the setting `log` is json, one JSON object a line on stderr."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("headrace")


class JsonLines(logging.Handler):
    """Writes what is logged, by libraries too, to what stderr is at the moment: streams/run.py puts another in its place."""

    def __init__(self, pipeline: str, worker: int | None) -> None:
        super().__init__()
        self._of: dict[str, Any] = {"pipeline": pipeline, "worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """The record as a JSON object, with the fields that `say` was given."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said: dict[str, Any] = {"time": at, "level": record.levelname.lower(), **self._of, "message": record.getMessage()}
        if record.name != log.name:
            said["logger"] = record.name
        if record.exc_info:
            said["traceback"] = logging.Formatter().formatException(record.exc_info)
        return json.dumps(said | vars(record).get("fields", {}), default=str)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, which lets one thread in at a time."""
        try:
            print(f"{self.format(record)}\n", end="", file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - as in logging's own handlers: who logs does not fail
            self.handleError(record)


def speak(how: str, pipeline: str, worker: int | None = None) -> None:
    """How this process says what it says from now on: text or json, and of what."""
    root = logging.getLogger()
    for each in root.handlers[:]:
        if isinstance(each, JsonLines):
            root.removeHandler(each)
    if how == "json":
        root.addHandler(JsonLines(pipeline, worker))
        log.setLevel(logging.INFO)
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # it writes lines of its own otherwise


def as_json() -> bool:
    """Whether this process says what it says as JSON."""
    return any(isinstance(each, JsonLines) for each in logging.getLogger().handlers)


def say(words: str, *, level: str = "info", out: bool = False, **fields: Any) -> None:
    """Says it: as JSON with its level and fields, or as a line of text without them, on stdout if `out`."""
    if as_json():
        log.log(logging.getLevelNamesMapping()[level.upper()], words, extra={"fields": fields})
    else:
        print(words, file=sys.stdout if out else sys.stderr, flush=True)


def parsed(line: str) -> dict[str, Any]:
    """What a line of JsonLines says; nothing if it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.keys() >= {"time", "level", "message"} else {}
