"""Points of delivery at which a process kills itself, for those who prove that nothing is lost (bench/faults.py).

HEADRACE_KILL_AT=POINT:TIMES:WORKER makes worker number WORKER send itself a SIGKILL when it passes POINT for the TIMESth time.
"""

import os
import signal
from collections.abc import Callable, Mapping

KILL_AT = "HEADRACE_KILL_AT"
POINTS = (
    "stage.before", "stage.after", "snapshot.before", "snapshot.after", "begin.before", "begin.after", "produce.before",
    "produce.after", "progress.before", "progress.after", "commit.before", "commit.after",
)  # fmt: skip


def killed_at(environment: Mapping[str, str], worker: int) -> Callable[[str], None]:
    """What to call at each point; does nothing unless the environment says so. Raises ValueError for a point there is not."""
    told = environment.get(KILL_AT)
    if not told:
        return lambda point: None
    wanted, times, victim = told.split(":")
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
                os.kill(os.getpid(), signal.SIGKILL)

    return at
