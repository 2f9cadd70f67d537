"""What people see when something is wrong: one line that says what to do, and an exit code that means something."""

import os
import sys
import traceback
import warnings
from typing import Any

from ops.logs import as_json, say

USAGE, FAILED = 2, 1
PREFIX = "headrace: "
BARE = (AssertionError, AttributeError, LookupError, TypeError)


def explain(error: BaseException) -> str:
    """The error in one line. What Python itself raises says little without its type and where."""
    text = " ".join(str(error).split())
    own = type(error).__module__.partition(".")[0] not in ("builtins", "pyo3_runtime")
    if text and (own or not isinstance(error, BARE)) and isinstance(error, Exception):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" in {frame.name} ({frame.filename}:{frame.lineno})" for frame in place)
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}; HEADRACE_DEBUG=1 shows more"


def report(error: BaseException) -> int:
    """Says the error and its notes on stderr, with its traceback if HEADRACE_DEBUG is set, and returns the exit code."""
    notes, debug = getattr(error, "__notes__", []), os.environ.get("HEADRACE_DEBUG", "0") != "0"
    if as_json():
        more: dict[str, Any] = {"traceback": "".join(traceback.format_exception(error))} if debug else {}
        say(explain(error), level="critical", error=type(error).__name__, notes=notes, **more)
        return FAILED
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    print(f"{PREFIX}{explain(error)}", *notes, sep="\n", file=sys.stderr, flush=True)
    return FAILED


def hush() -> None:
    """Deprecation warnings of what we are built on are no news to whoever runs a job, unless Python is asked for them (-W).

    Not by a filter: importing SQLAlchemy adds one of its own that shows them.
    """
    if sys.warnoptions:
        return
    show = warnings.showwarning

    def show_others(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DeprecationWarning | FutureWarning):
            return
        if as_json():
            say(f"{category.__name__}: {message}", level="warning")
        else:
            show(message, category, *place, **more)

    warnings.showwarning = show_others
