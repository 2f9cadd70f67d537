"""One look after another for new versions of a pipeline's model, and what a version has to stand before it decides."""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from features.freshness import substitutes
from features.views import View, open_store, views
from models.engine import Engine
from models.news import News, loaded, look, news_file, try_out
from models.registry import Version, without_login
from models.spec import ModelSpec
from ops.errors import explain
from streams.inputs import fits
from streams.pipeline import Pipeline
from streams.settings import JobSettings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

FORK = multiprocessing.get_context("fork")
Checker = Callable[[Pipeline, JobSettings], Callable[[Version], None]]


def checker(pipeline: Pipeline, settings: JobSettings) -> Callable[[Version], None]:
    """Whether a pipeline can use a version; raises ValueError, with the reason, where not."""
    load = tried(pipeline, settings)
    return lambda version: load(version).close()


def apart(pipeline: Pipeline, settings: JobSettings) -> Callable[[Version], None]:
    """As `checker`, for each version in a fork of this process: what is loaded goes with it, and a version that ends it is
    refused."""

    def check(version: Version) -> None:
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_check, args=(pipeline, settings, version, theirs), daemon=True)
        process.start()
        theirs.close()
        with ours, suppress(EOFError):
            error = ours.recv()
            process.join()
            if error:
                raise error
            return
        process.join()
        raise ValueError(f"model {version.name}: it ended the process that tried it (exit code {process.exitcode})")

    return check


def _check(pipeline: Pipeline, settings: JobSettings, version: Version, told: "Connection[Exception | None, None]") -> None:
    """Tells what is wrong with a version, or nothing, as an exception that can be sent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    found: Exception | None = None
    try:
        checker(pipeline, settings)(version)
    except ValueError as error:
        found = ValueError(str(error))
        for note in getattr(error, "__notes__", ()):
            found.add_note(note)
    except Exception as error:  # noqa: BLE001 - whatever it is, who asked says it
        found = RuntimeError(explain(error))
    told.send(found)


def tried(pipeline: Pipeline, settings: JobSettings) -> Callable[[Version], Engine]:
    """Loads a version and tries it; that raises ValueError, with the reason, where a pipeline cannot use it."""
    stored: tuple[View, ...] = ()
    if pipeline.stored is not None:
        repo = pipeline.repo(settings)
        stored = tuple(views(open_store(repo), repo, pipeline.stored.service))

    def load(version: Version) -> Engine:
        spec = ModelSpec.read(version.folder)
        fits(pipeline, spec, version.version, [name for view in stored for name in view.names])
        if pipeline.stored is not None:
            substitutes(pipeline.stored, stored, spec.medians)
        engine, reference = loaded(version.folder, pipeline.model.load, pipeline.drift is not None)
        try_out(engine, reference)
        return engine

    return load


def watch(
    pipeline: Pipeline,
    settings: JobSettings,
    waited: Callable[[], bool],
    say: Callable[..., None],
    shadow: Callable[[], None] = lambda: None,
    how: Checker = checker,
) -> None:
    """Looks at once, and again whenever `waited` says that it is time, until it says that it is over. What fails is said once,
    and tried again. shadow: looks after a shadow, each time. how: a version is checked.
    """
    name, models = pipeline.model.name, settings.home / "models"
    check, failing, file = None, "", news_file(models, pipeline.name)
    known = News(name, News.read(file).of(name).good)  # what was refused before may be good now
    while True:
        try:
            check = check or how(pipeline, settings)
            known = look(settings.registry_uri, name, models, known, check)
            known.write(file)  # each time: it is how the jobs know that somebody looks
            shadow()
            failing = ""
        except Exception as error:  # noqa: BLE001 - whatever a registry raises, the next look may find it well
            if explain(error) != failing:
                failing = explain(error)
                say(f"model {name}: no look at the registry: {without_login(failing)}", level="warning", model=name)
        if not waited():
            return
