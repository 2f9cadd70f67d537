"""Becomes a module run by the Python of a peer's own venv: python -m bench.peers.in_venv NAME MODULE [ARGUMENT ...]."""

import os
import sys
from collections.abc import Sequence

from bench.peers.venvs import folder, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; does not return where the venv is as its requirements say."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    name, module, *rest = given
    if why := missing(name):
        print(why, file=sys.stderr)
        return 1
    python = str(folder(name) / "bin" / "python")
    os.execv(python, [python, "-W", "ignore", "-m", module, *rest])


if __name__ == "__main__":
    sys.exit(main())
