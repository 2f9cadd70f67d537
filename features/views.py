"""The views of a Feast feature service, as a pipeline asks for them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

METRICS_FILES = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")
NUMBERS = ("INT32", "INT64", "FLOAT", "DOUBLE", "BOOL")


class StoredFeaturesError(ValueError):
    """The Feast repo cannot give what was asked of it; the message says what to do."""


@dataclass(frozen=True)
class View:
    """A feature view as a service asks for it.

    columns: the event's columns with the entity, in the order of `join_keys`, Feast's names for them; key_types: their Feast
    types. ttl_us: how old a value may be, in microseconds; 0: any age. table: Feast's own object.
    """

    name: str
    columns: tuple[str, ...]
    join_keys: tuple[str, ...]
    key_types: tuple[Any, ...]
    features: tuple[str, ...]
    ttl_us: int
    table: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The full names, as Feast has them."""
        return tuple(f"{self.name}__{feature}" for feature in self.features)


@cache
def load_feast() -> Any:
    """The module feast, imported only where it is needed, since that takes seconds, and without what it does to metrics.

    Feast sets an environment variable that makes prometheus_client keep its values in files: in this process, if it is not yet
    imported, and in every process started from here.
    """
    import prometheus_client.values  # noqa: F401  how values are kept is settled here

    before = {name: os.environ.get(name) for name in METRICS_FILES}
    with _no_more_than_needed():
        import feast

    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
    return feast


@contextmanager
def _no_more_than_needed() -> Iterator[None]:
    """Feast that is imported within goes without PyTorch, which it has for tensors that nobody here asks it for, and, as with
    `python -O`, without Typeguard, which compiles its classes anew to have them check what they are given: these are 6 of the 8
    seconds of a core that it takes otherwise, in each process of a job."""
    import typeguard

    checking, without_torch = typeguard.typechecked, "torch" not in sys.modules
    try:
        typeguard.typechecked = lambda target: target  # type: ignore[assignment]
        if without_torch:
            sys.modules["torch"] = None  # type: ignore[assignment]  # it cannot be imported
        yield
    finally:
        typeguard.typechecked = checking
        if without_torch:
            sys.modules.pop("torch", None)


def open_store(repo: Path) -> Any:
    """The FeatureStore of a Feast repo. Raises StoredFeaturesError if there is none, or it was never applied."""
    if not (repo / "feature_store.yaml").is_file():
        raise StoredFeaturesError(f"no Feast repo at {repo}: expected a file feature_store.yaml there")
    store = load_feast().FeatureStore(repo_path=str(repo))
    registry = store.config.registry
    if registry.registry_type == "file" and "://" not in registry.path and not (repo / registry.path).is_file():
        raise StoredFeaturesError(f"the Feast repo {repo} has no registry at {repo / registry.path}: run feast -c {repo} apply")
    return store


def views(store: Any, repo: Path, service: str) -> list[View]:
    """The views of a FeatureService. Raises StoredFeaturesError if there is no such service, or a feature is no number."""
    from feast.errors import FeastObjectNotFoundException
    from feast.feature_view import FeatureView

    try:
        projections = store.get_feature_service(service).feature_view_projections
        found = [(projection, store.get_feature_view(projection.name)) for projection in projections]
    except FeastObjectNotFoundException as error:
        known = ", ".join(sorted(known.name for known in store.list_feature_services())) or "none"
        raise StoredFeaturesError(
            f"no feature service {service} in the Feast repo {repo} (it has {known}; {error}): run feast -c {repo} apply"
        ) from error
    for projection, table in found:
        name = projection.name_to_use()
        if not isinstance(table, FeatureView) or not table.entities or table.entities == ["__dummy"]:
            raise StoredFeaturesError(f"feature service {service}: expected views of stored rows with entities, got {name}")
        for feature in projection.features:
            if feature.dtype.to_value_type().name not in NUMBERS:
                raise StoredFeaturesError(
                    f"feature service {service}: expected numbers, got {feature.dtype} at {name}__{feature.name}"
                )
    return [_view(projection, table) for projection, table in found]


def _view(projection: Any, table: Any) -> View:
    return View(
        name=projection.name_to_use(),
        columns=tuple(projection.join_key_map.get(column.name, column.name) for column in table.entity_columns),
        join_keys=tuple(column.name for column in table.entity_columns),
        key_types=tuple(column.dtype.to_value_type() for column in table.entity_columns),
        features=tuple(feature.name for feature in projection.features),
        ttl_us=int(table.ttl.total_seconds() * 1_000_000) if table.ttl else 0,
        table=table,
    )
