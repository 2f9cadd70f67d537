"""Waiting for the workers that one connects to: Bytewax tries, and where nobody listens yet, again after a second."""

import time
from collections.abc import Sequence
from pathlib import Path

TABLES = Path("/proc/net/tcp"), Path("/proc/net/tcp6")
LISTENS = "0A"
LOOK_SECONDS = 0.01


def await_peers(addresses: Sequence[str], seconds: float) -> bool:
    """Waits until somebody listens at all addresses (HOST:PORT, on this machine); whether they do after so many seconds.

    Nobody is connected to, which would be taken for a worker. Where the machine does not say who listens, it does not wait.
    """
    if not TABLES[0].exists():
        return False
    ports = {f"{int(address.rpartition(':')[2]):04X}" for address in addresses}
    deadline = time.monotonic() + seconds
    while not ports <= _listening():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _listening() -> set[str]:
    lines = [line for table in TABLES if table.exists() for line in table.read_text().splitlines()[1:]]
    rows = (line.split() for line in lines)
    return {row[1].rpartition(":")[2] for row in rows if row[3] == LISTENS}
