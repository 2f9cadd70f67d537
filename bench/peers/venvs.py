"""Makes the venvs of peers that do not live in headrace's own: python -m bench.peers.venvs quix [quix-flights bytewax-feast].

Each is .peers/NAME in the checkout, from the pinned versions in bench/peers/requirements/NAME.txt, whose first line says what
is downloaded.
"""

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from ops.progress import bar

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = Path(__file__).parent / "requirements"
MADE = "made.txt"
STEPS = ("Collecting", "Downloading", "Processing", "Using cached")


class VenvError(RuntimeError):
    """A venv cannot be made; the message has pip's last words."""


def names() -> list[str]:
    """The peers that have a venv of their own."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def folder(name: str) -> Path:
    """Where a peer's venv is, made or not."""
    return ROOT / ".peers" / name


def missing(name: str) -> str:
    """What to do before the peer can run; empty if its venv is there, made from its requirements as they now are."""
    if name not in names():
        return f"peer {name}: expected one of {', '.join(names())}"
    made = folder(name) / MADE
    if made.is_file() and made.read_text() == (REQUIREMENTS / f"{name}.txt").read_text():
        return ""
    state = "was made from other requirements" if made.is_file() else "is not made"
    return f"peer {name}: its venv {folder(name)} {state}: python -m bench.peers.venvs {name}"


def make(name: str) -> None:
    """Makes a peer's venv, if it is not there as its requirements now are. Raises VenvError."""
    if not missing(name):
        print(f"{name}: {folder(name)} is as its requirements say")
        return
    file = REQUIREMENTS / f"{name}.txt"
    wanted = file.read_text()
    print(f"{name}: {wanted.splitlines()[0].lstrip('# ')}", flush=True)
    with bar() as progress:
        progress(f"{name}: making {folder(name)}", 0.0)
        shutil.rmtree(folder(name), ignore_errors=True)
        venv.create(folder(name), with_pip=True)
        python = str(folder(name) / "bin" / "python")
        command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off", "-r", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
            last = ""
            assert pip.stdout is not None
            for line in pip.stdout:
                last = line.strip() or last
                if last.startswith(STEPS):
                    progress(f"{name}: {last[:90]}", 0.0)
                elif last.startswith("Installing"):
                    progress(f"{name}: installing", 0.0)
        if pip.returncode:
            raise VenvError(f"{name}: pip ended with {pip.returncode}: {last}")
    (folder(name) / MADE).write_text(wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or not set(given) <= set(names()):
        print(f"python -m bench.peers.venvs NAME...: expected names among {', '.join(names())}", file=sys.stderr)
        return 2
    try:
        for name in given:
            make(name)
    except VenvError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
