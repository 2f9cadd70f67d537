"""For processes that play pods (tests/kubelet.py): names of pods are those that the cluster's name server would know."""

import json
import os
import socket
from pathlib import Path
from typing import Any

asked = socket.getaddrinfo


def getaddrinfo(host: Any, *more: Any, **how: Any) -> Any:
    """As the system's, after the names that are written down."""
    known = json.loads(Path(os.environ["PLAYED_NAMES"]).read_text()) if isinstance(host, str) else {}
    return asked(known.get(host, host), *more, **how)


if "PLAYED_NAMES" in os.environ:
    socket.getaddrinfo = getaddrinfo
