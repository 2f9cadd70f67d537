"""Makes a Feast repo ready for use: its sources, its registry and its online store, all in the repo's folder `data`."""

import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

MADE = ("registry.db", "online.db")
STAMP = "prepared.sha256"
LOG = "feast.log"
BEGINNING = "2000-01-01T00:00:00Z"
Sources = Callable[[Path], Mapping[str, int]]


def prepare(
    repo: Path,
    progress: Callable[[str], None],
    sources: Sources,
    end: str,
    start: str = BEGINNING,
) -> None:
    """Write the sources, `feast apply`, `feast materialize start end`: the online store is then as of `end`.

    sources: writes the Parquet files into the folder that it is given, and returns how many rows each has. progress is told
    what is being done. Does nothing if it was done before with the same definitions, times, versions, and module of the
    sources; otherwise registry and online store are made anew. Feast works in a process of its own, and what it says is in
    data/feast.log.

    Raises FileNotFoundError if `repo` has no feature_store.yaml, RuntimeError with Feast's last words if Feast fails, and
    what `sources` raises.
    """
    repo = repo.absolute()
    if not (repo / "feature_store.yaml").is_file():
        raise FileNotFoundError(f"no Feast repo at {repo}: expected a file feature_store.yaml there")
    data = repo / "data"
    digest = _digest(repo, sources, start, end)
    stamp = data / STAMP
    if stamp.is_file() and stamp.read_text() == digest and all((data / name).is_file() for name in MADE):
        return
    stamp.unlink(missing_ok=True)
    data.mkdir(exist_ok=True)
    rows = sources(data)
    progress("stored features: " + ", ".join(f"{name} {count:,} rows" for name, count in rows.items()))
    for name in MADE:
        (data / name).unlink(missing_ok=True)
    progress(f"stored features: feast apply, feast materialize {start} {end}")
    command = [sys.executable, "-c", "import sys, ops.feast_repo as f; f.feast(*sys.argv[1:])", str(repo), start, end]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (data / LOG).write_text(done.stdout)
    if done.returncode:
        last = done.stdout.strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeError(f"feast failed on {repo} with exit status {done.returncode}: {last[0]} (more in {data / LOG})")
    stamp.write_text(digest)


def feast(repo: str, start: str, end: str) -> None:
    """`feast apply` and `feast materialize`, in one process: to start one takes Feast most of the time."""
    from feast.cli.cli import cli

    cli(["-c", repo, "apply"], standalone_mode=False)
    cli(["-c", repo, "materialize", start, end], standalone_mode=False)


def _digest(repo: Path, sources: Sources, start: str, end: str) -> str:
    """What the contents of data/ depend on."""
    module = inspect.getmodule(sources)
    parts = [version("feast"), start, end, inspect.getsource(module) if module else ""]
    parts.extend(path.read_text() for path in sorted([*repo.glob("*.py"), *repo.glob("*.yaml")]))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
