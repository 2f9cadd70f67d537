"""Makes the venv of a peer that does not live in headrace's own: python -m bench.peers.venvs quix [bytewax ...].

Each is .peers/NAME in the checkout, from the pinned versions in bench/peers/requirements/NAME.txt.
"""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = Path(__file__).parent / "requirements"


def folder(name: str) -> Path:
    """Where a peer's venv is, made or not."""
    return ROOT / ".peers" / name


def make(name: str) -> None:
    """Makes a peer's venv, if it is not there as its requirements now are. Raises FileNotFoundError for a peer without any."""
    wanted = (REQUIREMENTS / f"{name}.txt").read_text()
    made = folder(name) / "made.txt"
    if made.is_file() and made.read_text() == wanted:
        print(f"{name}: {folder(name)} is as its requirements say")
        return
    print(f"{name}: making {folder(name)}, about 0.2 GB", flush=True)
    venv.create(folder(name), with_pip=True, clear=True)
    python = folder(name) / "bin" / "python"
    install = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "-r", REQUIREMENTS / f"{name}.txt"]
    subprocess.run([str(word) for word in install], check=True)
    made.write_text(wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    known = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    names = sys.argv[1:] if arguments is None else arguments
    if not names or not set(names) <= set(known):
        print(f"python -m bench.peers.venvs NAME...: expected names among {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names:
        make(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
