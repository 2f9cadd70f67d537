"""A version's graph once more with its weights in a file of their own, which ONNX Runtime maps into memory.

Weights within the graph are read, copied, and given back by a process that decides meanwhile: for 80 MB a third of a second of
a core, and ten milliseconds at the end in which the interpreter stands still, since it is held while a session goes and the
system takes its memory back page by page. Mapped, a version is ready in milliseconds, all processes of a machine share its
pages, and it is gone as fast. Who tries a version writes it, beside the jobs.
"""

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from models.engine import GRAPH, MAPPED, checked_graph, mapped
from models.spec import state

log = logging.getLogger(__name__)

WEIGHTS, OF, MAKING, LEFT_SECONDS = "weights", "of", ".mapping-", 3600.0
LEAST_BYTES, LEAST_TENSOR, PAGE = 1_000_000, 65_536, 4096
"""Of a graph, for which it is worth it, of a tensor that goes to the other file, and at whose multiples each begins there."""


def write_mapped(folder: Path) -> bool:
    """Writes it, whole or not at all, if it is not there; whether it is: a small graph is best left as it is, and what cannot
    be written need not be. Raises ModelRefused for a graph that is not to be served."""
    path = folder / GRAPH
    if not path.is_file() or path.stat().st_size < LEAST_BYTES:
        return False
    of = ""
    with suppress(OSError):
        of = state(folder)
        if of and (mapped(folder) / OF).read_text() == of:
            return True
    _, model = checked_graph(path)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=MAKING) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            if not _apart(model):
                return False
            onnx.save_model(model, made / GRAPH)
            (made / OF).write_text(of)
            shutil.rmtree(mapped(folder), ignore_errors=True)
            made.rename(mapped(folder))
    except Exception as error:  # noqa: BLE001 - whatever it is, the version can be used without
        log.warning("%s: its weights are not mapped into memory: %s: %s", folder, type(error).__name__, error)
        return False
    return True


def _apart(model: onnx.ModelProto) -> int:
    """Says of large tensors that they are in the other file, each at a multiple of PAGE; how many bytes it will have."""
    at = 0
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= LEAST_TENSOR:
            set_external_data(tensor, WEIGHTS, offset=at)
            at += -(-len(tensor.raw_data) // PAGE) * PAGE
    return at


def tidy_mapped(models: Path, name: str, but: Iterable[str]) -> None:
    """Deletes those of a model's versions, but of these folders, and what a killed process left unfinished. Who has mapped one
    keeps it."""
    kept = {folder + MAPPED for folder in but}
    of_model = re.compile(re.escape(name) + r"-\d+-[0-9a-f]+" + re.escape(MAPPED))
    gone = [each for each in models.glob(f"*{MAPPED}") if of_model.fullmatch(each.name) and each.name not in kept]
    for each in models.glob(f"{MAKING}*"):
        with suppress(FileNotFoundError):
            gone += [each] if time.time() - each.stat().st_mtime > LEFT_SECONDS else []
    for each in gone:
        shutil.rmtree(each, ignore_errors=True)
