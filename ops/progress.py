"""Progress for people: a bar on a terminal, a line per step elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(quiet: bool = False) -> Iterator[Callable[[str, float], None]]:
    """Gives a function to call with what is being done and the share of it that is done, 0 to 1."""
    if quiet:
        yield lambda doing, share: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            tasks: dict[str, TaskID] = {}

            def show(doing: str, share: float) -> None:
                if doing not in tasks:
                    for task in tasks.values():
                        progress.update(task, completed=1.0, total=1.0)
                    tasks[doing] = progress.add_task(doing, total=1.0 if share else None)
                progress.update(tasks[doing], completed=share, total=1.0 if share else None)

            yield show
            for task in tasks.values():
                progress.update(task, completed=1.0, total=1.0)
    else:
        said: list[str] = []
        started = time.monotonic()

        def say(doing: str, share: float) -> None:
            if doing not in said:
                said.append(doing)
                print(f"  [{time.monotonic() - started:5.1f} s] {doing}", file=sys.stderr, flush=True)

        yield say
