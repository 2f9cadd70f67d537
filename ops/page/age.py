"""When a version of the model was made. The registry says so, a large library: a process of its own asks it, once a version.

python -m ops.page.age MODEL      {"1": "2026-01-05T12:00:00+00:00"}
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

AGAIN_SECONDS, MOST_SECONDS = 300.0, 120.0
LOWER = 9
"""How much nicer than the page: to the lowest priority there is."""


class Age:
    """Remembers what the registry said. command: what asks it, in the place of this module."""

    def __init__(self, model: str, command: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._command = [*command] or [sys.executable, "-m", "ops.page.age", model]
        self._clock = clock
        self._made: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._again_at = float("-inf")

    def of(self, version: int) -> str | None:
        """When it was made (ISO 8601); None while that is not known: it is asked for meanwhile, and again after a while."""
        found = self._made.get(str(version))
        busy = self._thread is not None and self._thread.is_alive()
        if found is None and not busy and self._clock() >= self._again_at:
            self._again_at = self._clock() + AGAIN_SECONDS
            self._thread = threading.Thread(target=self._ask, name="age", daemon=True)
            self._thread.start()
        return found

    def _ask(self) -> None:
        try:
            done = subprocess.run(
                self._command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=MOST_SECONDS,
                check=True,
            )
            self._made = {str(version): str(at) for version, at in json.loads(done.stdout).items()}
        except (OSError, subprocess.SubprocessError, ValueError, AttributeError):
            return  # the page shows no age then


def main() -> int:
    """Prints when each version was made. Standard input is the page's, and ends with the job."""
    os.nice(LOWER)
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    from models.registry import versions
    from ops.errors import hush
    from streams.settings import JobSettings

    hush()
    found = versions(JobSettings().registry_uri, sys.argv[1])
    print(json.dumps({one.version: one.made_at.isoformat() for one in found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
