"""Points of delivery at which a process kills itself, for those who prove that nothing is lost (bench/faults.py).

HEADRACE_KILL_AT=POINT:TIMES:WORKER makes worker number WORKER send itself a SIGKILL when it passes POINT for the TIMESth time;
its last word on stderr is "killed at POINT". Of a job that is started again there may be one for each of its lives, as
POINT:TIMES:WORKER;POINT:TIMES:WORKER.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping

KILL_AT = "HEADRACE_KILL_AT"
POINTS = (
    "stage.before", "stage.after", "snapshot.before", "snapshot.after", "begin.before", "begin.after", "produce.before",
    "produce.after", "progress.before", "progress.after", "commit.before", "commit.after",
)  # fmt: skip
AT_ONCE = ("produce.before", "produce.after", "snapshot.before", "snapshot.after")


def killed_at(environment: Mapping[str, str], worker: int, life: int = 0) -> Callable[[str], None]:
    """What to call at each point; does nothing unless the environment says so. Raises ValueError for a point there is not.

    life: how often the job has been started again. A job that delivers exactly once passes all POINTS, one that delivers at
    least once those of AT_ONCE.
    """
    told = environment.get(KILL_AT, "").split(";")
    if life >= len(told) or not told[life]:
        return lambda point: None
    wanted, times, victim = told[life].split(":")
    if wanted not in POINTS:
        raise ValueError(f"{KILL_AT}: expected a point among {', '.join(POINTS)}, got {wanted}")
    if int(victim) != worker:
        return lambda point: None
    left = int(times)

    def at(point: str) -> None:
        nonlocal left
        if point == wanted:
            left -= 1
            if left == 0:
                print(last_words(point), file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    return at


def last_words(point: str) -> str:
    """What a process says that kills itself at a point."""
    return f"killed at {point}"
