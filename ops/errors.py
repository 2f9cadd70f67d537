"""What people see when something is wrong: one line that says what to do, and an exit code that means something."""

import os
import sys
import traceback

USAGE, FAILED = 2, 1


def explain(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) > 2 else f"{type(error).__name__}: {text}"


def report(error: BaseException) -> int:
    """Prints the error to stderr, with its traceback if HEADRACE_DEBUG is set, and returns the exit code."""
    if os.environ.get("HEADRACE_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    print(f"headrace: {explain(error)}", file=sys.stderr, flush=True)
    return FAILED
