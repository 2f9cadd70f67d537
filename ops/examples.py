"""The examples: pipelines of anybody's own, kept in docs/examples, each with a demo of what it is worth."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops.progress import bar
from streams.settings import JobSettings

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def names() -> list[str]:
    """The examples with a demo."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/demo.py"))


def run_example(name: str, settings: JobSettings, json_file: Path | None) -> None:
    """Runs the demo of an example: `main` of its demo.py, as from its own folder."""
    main = _main(EXAMPLES / name)
    with bar() as progress:
        said = main(settings, json_file, progress)
    print(said)


def _main(folder: Path) -> Callable[..., str]:
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(f"{folder.name}_demo", folder / "demo.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {folder / 'demo.py'}")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[..., str] = module.main
    return main
