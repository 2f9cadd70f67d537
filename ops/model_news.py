"""One look after another for new versions of a pipeline's model, and what a version has to stand before it decides."""

from collections.abc import Callable

from models.news import News, check_engine, look, news_file
from models.registry import Version
from models.spec import ModelSpec
from ops.errors import explain
from ops.register import stored_names
from streams.inputs import features_of, require
from streams.pipeline import Pipeline
from streams.settings import JobSettings


def checker(pipeline: Pipeline, settings: JobSettings) -> Callable[[Version], None]:
    """Whether a pipeline can use a version; raises ValueError, with the reason, where not."""
    features = features_of(pipeline, stored_names(pipeline, settings))

    def check(version: Version) -> None:
        spec = ModelSpec.read(version.folder)
        inputs = [(each.name, each.kind) for each in spec.inputs]
        require(f"model {version.name} version {version.version}", inputs, f"pipeline {pipeline.name}", features)
        if spec.outputs != 1 and (pipeline.policy or pipeline.drift):
            raise ValueError(f"expected one output, as policies and drift need, got {spec.outputs}")
        check_engine(version, pipeline.model.threads, pipeline.drift is not None)

    return check


def watch(pipeline: Pipeline, settings: JobSettings, waited: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Looks at once, and again whenever `waited` says that it is time, until it says that it is over. What fails is said once,
    and tried again."""
    name, models = pipeline.model.name, settings.home / "models"
    check, failing = None, ""
    while True:
        try:
            check = check or checker(pipeline, settings)
            known = News.read(news_file(models, name))
            found = look(settings.registry_uri, name, models, known, check)
            if found != known:
                found.write(news_file(models, name))
            failing = ""
        except Exception as error:  # noqa: BLE001 - whatever a registry raises, the next look may find it well
            if explain(error) != failing:
                failing = explain(error)
                say(f"model {name}: no look at the registry: {failing}")
        if not waited():
            return
