"""A version's graph once more with its weights in a file of their own, which ONNX Runtime maps into memory.

Weights within the graph are read, copied, and given back by a process that decides meanwhile: for 80 MB a third of a second of
a core, and ten milliseconds at the end in which the interpreter stands still, since it is held while a session goes and the
system takes its memory back page by page. Mapped, a version is ready in milliseconds, all processes of a machine share its
pages, and it is gone as fast. Who tries a version writes it, beside the jobs.
"""

import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import onnx

from models.engine import GRAPH, MAPPED, checked_graph, mapped

WEIGHTS, MAKING, LEFT_SECONDS = "weights", ".mapping-", 3600.0
LEAST_BYTES, LEAST_TENSOR = 1_000_000, 65_536
"""Of a graph, for which it is worth it, and of a tensor that goes to the other file."""


def write_mapped(folder: Path) -> bool:
    """Writes it anew, whole or not at all; whether it did: a small graph is best left as it is. Raises ModelRefused for a graph
    that is not to be served."""
    path = folder / GRAPH
    if not path.is_file() or path.stat().st_size < LEAST_BYTES:
        return False
    _, graph = checked_graph(path)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=MAKING) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        onnx.save_model(graph, made / GRAPH, save_as_external_data=True, location=WEIGHTS, size_threshold=LEAST_TENSOR)
        if not (made / WEIGHTS).exists():
            return False
        shutil.rmtree(mapped(folder), ignore_errors=True)
        made.rename(mapped(folder))
    return True


def tidy_mapped(models: Path, name: str, but: Iterable[str]) -> None:
    """Deletes those of a model's versions, but of these folders, and what a killed process left unfinished. Who has mapped one
    keeps it."""
    kept = {folder + MAPPED for folder in but}
    gone = [each for each in models.glob(f"{name}-[0-9]*{MAPPED}") if each.name not in kept]
    for each in models.glob(f"{MAKING}*"):
        with suppress(FileNotFoundError):
            gone += [each] if time.time() - each.stat().st_mtime > LEFT_SECONDS else []
    for each in gone:
        shutil.rmtree(each, ignore_errors=True)
