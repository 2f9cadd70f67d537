"""A project of one's own: a pipeline, its training, a Feast repo, sample events and a test, outside this repository.

The files lie in templates/my-fraud as they are, and run there; a project of another name has its own in its place.
"""

import re
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.resolve()
TEMPLATE = Path(__file__).parent / "templates" / "my-fraud"
NAME = "[a-z][a-z0-9]*(-[a-z0-9]+)*"
MADE_THERE = ("__pycache__", "data", ".headrace")


class CannotInitError(ValueError):
    """The project cannot be made there; the message says why."""


def make(folder: Path) -> list[str]:
    """Makes a project named as its folder; returns its files. All of them are there, or none.

    Raises CannotInitError for a name that topics and Feast would refuse, a folder that is not empty or lies in the checkout.
    """
    target = folder.absolute()
    name = target.name
    if not re.fullmatch(NAME, name):
        raise CannotInitError(
            f"init {folder}: expected a name of small letters, digits and hyphens that begins with a letter, such as my-fraud, "
            f"got {name}"
        )
    if CHECKOUT in target.resolve().parents:
        raise CannotInitError(f"init {folder}: expected a folder outside headrace's own checkout, got one in {CHECKOUT}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CannotInitError(f"init {folder}: expected a folder that is not there or is empty: nothing is overwritten")
    words = {"my-fraud": name, "my_fraud": name.replace("-", "_"), "/path/to/headrace": str(CHECKOUT)}
    files = [path.relative_to(TEMPLATE) for path in sorted(TEMPLATE.rglob("*")) if path.is_file()]
    files = [path for path in files if not set(path.parts) & set(MADE_THERE)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        made = Path(scratch) / name
        for path in files:
            text = (TEMPLATE / path).read_text()
            for word, own in words.items():
                text = text.replace(word, own)
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_text(text)
        made.rename(target)
    return [path.as_posix() for path in files]
