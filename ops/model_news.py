"""One look after another for new versions of a pipeline's model, and what a version has to stand before it decides."""

import shutil
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

from features.freshness import substitutes
from features.views import View, load_feast, open_store, views
from models.engine import Engine, OnnxEngine, mapped
from models.mapped import tidy_mapped, write_mapped
from models.news import News, loaded, look, news_file, try_out
from models.registry import Version, without_login
from models.spec import ModelSpec
from ops.beside import fork, least
from ops.errors import explain
from streams.inputs import fits
from streams.pipeline import Pipeline
from streams.settings import JobSettings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Checker = Callable[[Pipeline, JobSettings], Callable[[Version], None]]
FIRST_SECONDS, MOST_SECONDS, GONE_SECONDS = 10.0, 1800.0, 5.0
"""For which a version is tried: with the time that nobody else wants, of which a busy machine may have none, and with more; and
for which a fork that is killed is waited for."""


def checker(pipeline: Pipeline, settings: JobSettings) -> Callable[[Version], None]:
    """Whether a pipeline can use a version; raises ValueError, with the reason, where not."""
    load = tried(pipeline, settings)
    return lambda version: load(version).close()


def apart(pipeline: Pipeline, settings: JobSettings) -> Callable[[Version], None]:
    """As `checker`, for each version in a fork of this process: what is loaded goes with it, and a version that ends it is
    refused.

    The fork has the time that nobody else wants. If a version does not stand so, it may be for want of time, and it is tried
    anew with this process's priority: a busy machine must not keep a rollback waiting, or refuse it.
    """
    if pipeline.stored is not None:
        load_feast()

    def check(version: Version, first: bool = True) -> None:
        ours, theirs = Pipe(duplex=False)
        process = fork(_check, pipeline, settings, version, theirs, first)
        theirs.close()
        seconds = FIRST_SECONDS if first else MOST_SECONDS
        error: Exception | None = ValueError(f"model {version.name}: expected to have tried it within {seconds:.0f} s, had not")
        try:
            with ours:
                if ours.poll(seconds):
                    error = ours.recv()
        except EOFError:
            process.join()
            ended = f"model {version.name}: it ended the process that tried it (exit code {process.exitcode})"
            error = RuntimeError(ended) if process.exitcode == -signal.SIGTERM else ValueError(ended)
        finally:
            process.kill()
            process.join(GONE_SECONDS)  # it goes with the time that it has; if that takes longer, the next fork sees it off
        if error and first:
            check(version, first=False)
        elif error:
            raise error

    return check


def _check(pipeline: Pipeline, settings: JobSettings, version: Version, told: "Connection[Any, Any]", with_least: bool) -> None:
    """Tells what is wrong with a version, or nothing, as an exception that can be sent: a ValueError if it is the version."""
    found: Exception | None = None
    try:
        if with_least:
            least()
        check = checker(pipeline, settings)
        try:
            check(version)
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
        apart = pipeline.model.engine in (None, OnnxEngine) and write_mapped(version.folder)
        engine, reference = loaded(version.folder, pipeline.model.load, pipeline.drift is not None, checked=apart)
        if apart and isinstance(engine, OnnxEngine) and not engine.mapped:
            shutil.rmtree(mapped(version.folder), ignore_errors=True)  # nobody has tried it
        try_out(engine, reference)
        return engine

    return load


def watch(
    pipeline: Pipeline,
    settings: JobSettings,
    waited: Callable[[], bool],
    say: Callable[..., None],
    how: Checker,
    shadow: Callable[[], None] = lambda: None,
) -> None:
    """Looks at once, and again whenever `waited` says that it is time, until it says that it is over. What fails is said once,
    and tried again. how: a version is checked. shadow: looks after a shadow, each time.
    """
    name, models = pipeline.model.name, settings.home / "models"
    check, failing, file = None, "", news_file(models, pipeline.name)
    known = News(name, News.read(file).of(name).good)  # what was refused before may be good now
    tidy_mapped(models, name, [each.folder for each in known.good])
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
