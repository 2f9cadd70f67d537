"""The model registry: MLflow, with SQLite and a folder of files beside it by default. Only files cross, never a pickle.

A version is the folder that a training wrote (model.onnx, model.json, reference.*), logged as a run's artifacts, with the
digest of its files as a tag. `resolve` checks that digest before anything opens a file.
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from models.spec import digest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"
DIGEST = "headrace.digest"
FOLDER = "model"
CHAMPION, PREVIOUS, SHADOW = "champion", "previous", "shadow"


@dataclass(frozen=True)
class Version:
    """A version of a model in the registry, with its files in a local folder."""

    name: str
    version: int
    digest: str
    folder: Path


class ModelNotFound(LookupError):  # noqa: N818
    """There is no such model in the registry; the message says how to make one."""


class DigestMismatch(ValueError):  # noqa: N818
    """The files of a model are not those that were recorded."""


def record(
    uri: str,
    name: str,
    folder: Path,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    alias: str = "champion",
) -> Version:
    """Records the files of `folder` as the next version of a model, as a run with params and metrics, and gives it the alias.

    alias: empty for none: a version that nobody uses yet. Who was champion before becomes `previous`.
    uri: MLflow's tracking URI; for sqlite:///PATH the files go to `artifacts` beside PATH. The alias moves last, so that
    whoever resolves it sees the old version or all of the new one. Raises FileNotFoundError for a folder without files.
    """
    total = digest(folder)
    if not any(path.is_file() for path in folder.rglob("*")):
        raise FileNotFoundError(f"model {name}: expected files in {folder}, got none")
    database = _database(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    client = _client(uri)
    run = client.create_run(_experiment(client, name, database), run_name=name, tags={DIGEST: total}).info
    try:
        for key, value in params.items():
            client.log_param(run.run_id, key, value)
        for key, number in metrics.items():
            client.log_metric(run.run_id, key, number)
        client.log_artifacts(run.run_id, str(folder), FOLDER)
        _register(client, name)
        made = client.create_model_version(name, f"{run.artifact_uri}/{FOLDER}", run.run_id, tags={DIGEST: total})
        if alias:
            _give(client, name, alias, made.version)
    except BaseException:
        client.set_terminated(run.run_id, "FAILED")
        raise
    client.set_terminated(run.run_id)
    return Version(name, int(made.version), total, folder)


def resolve(uri: str, name: str, alias: str = "champion", *, into: Path) -> Version:
    """The version that has the alias, its files in a folder of `into` named by name, version and digest.

    Raises ModelNotFound where there is none, and DigestMismatch, with expected and got, where the registry's files are not the
    recorded ones; then nothing is left in `into`.
    """
    found = _found(uri, name, alias)
    expected = found.tags.get(DIGEST)
    if expected is None:
        raise DigestMismatch(
            f"model {name} version {found.version}: expected the tag {DIGEST}, got none: not recorded by headrace"
        )
    folder = into / f"{name}-{found.version}-{expected[:12]}"
    if not _holds(folder, expected):
        into.mkdir(parents=True, exist_ok=True)
        _download(uri, found.source, folder, f"model {name} version {found.version}", expected)
    return Version(name, int(found.version), expected, folder)


def newest(uri: str, name: str, alias: str = "champion") -> tuple[int, str]:
    """The version that has the alias and its digest (empty: it has none), without its files. Raises ModelNotFound."""
    found = _found(uri, name, alias)
    return int(found.version), str(found.tags.get(DIGEST, ""))


@dataclass(frozen=True)
class Listed:
    """A version as the registry has it: when it was made, its aliases, and the metrics of its training."""

    version: int
    digest: str
    made_at: datetime
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]


def versions(uri: str, name: str) -> list[Listed]:
    """The versions of a model, the newest first. Raises ModelNotFound where there is none."""
    client = _asked(uri, f"no model {name} in {without_login(uri)}")
    found = client.search_model_versions(f"name = '{name}'")
    if not found:
        raise ModelNotFound(f"no model {name} in {without_login(uri)}: make one (headrace train, headrace models register)")
    aliases = client.get_registered_model(name).aliases
    return [
        Listed(
            int(each.version),
            str(each.tags.get(DIGEST, "")),
            datetime.fromtimestamp(each.creation_timestamp / 1000, UTC),
            tuple(sorted(alias for alias, version in aliases.items() if int(version) == int(each.version))),
            dict(client.get_run(each.run_id).data.metrics) if each.run_id else {},
        )
        for each in sorted(found, key=lambda each: -int(each.version))
    ]


def promote(uri: str, name: str, version: int) -> int:
    """Makes a version the champion, and the one that was it `previous`; returns that one's number, 0 for none.

    Raises ModelNotFound where there is no such version.
    """
    client = _asked(uri, f"no model {name} in {without_login(uri)}")
    known = sorted((int(each.version) for each in client.search_model_versions(f"name = '{name}'")), reverse=True)
    if version not in known:
        raise ModelNotFound(f"model {name}: no version {version}, there are {', '.join(map(str, known)) or 'none'}")
    return _give(client, name, CHAMPION, version)


def shadow(uri: str, name: str, version: int | None) -> None:
    """Gives a version the alias shadow; None: takes it from whichever has it. Raises ModelNotFound where there is none."""
    client = _asked(uri, f"no model {name} in {without_login(uri)}")
    if version is None:
        _found(uri, name, SHADOW)
        client.delete_registered_model_alias(name, SHADOW)
        return
    if version not in {each.version for each in versions(uri, name)}:
        raise ModelNotFound(f"model {name}: no version {version}")
    client.set_registered_model_alias(name, SHADOW, str(version))


def rollback(uri: str, name: str) -> tuple[int, int]:
    """Makes the previous champion the champion again; returns its number, and that of the one it was. Raises ModelNotFound."""
    version, _ = newest(uri, name, PREVIOUS)
    return version, _give(_client(uri), name, CHAMPION, version)


def _give(client: "MlflowClient", name: str, alias: str, version: int | str) -> int:
    """Gives a version the alias; of the champion's, the one that had it becomes the previous one, whose number is returned."""
    before = client.get_registered_model(name).aliases.get(alias)
    if alias == CHAMPION and before is not None and int(before) != int(version):
        client.set_registered_model_alias(name, PREVIOUS, before)
    client.set_registered_model_alias(name, alias, str(version))
    return int(before or 0)


def load_library(uri: str) -> None:
    """Imports what asking a registry takes, seconds of a core, and asks nothing."""
    _quietly()
    import_module("mlflow.artifacts")
    import_module("mlflow.tracking")
    if _database(uri) is not None:
        import_module("mlflow.store.model_registry.sqlalchemy_store")
        import_module("mlflow.store.tracking.sqlalchemy_store")


def without_pool() -> None:
    """Has MLflow keep no connection to its database open: for a process that forks, before it asks the registry."""
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")


def without_login(text: str) -> str:
    """Without what stands between // and @ in addresses: who may get in."""
    return re.sub("//[^/@ ]*@", "//", text)


def _asked(uri: str, missing: str) -> "MlflowClient":
    """The client of a registry that is there; raises ModelNotFound."""
    database = _database(uri)
    if database is not None and not database.exists():
        raise ModelNotFound(f"{missing}: make one (headrace train, headrace models register)")
    return _client(uri)


def _found(uri: str, name: str, alias: str) -> "ModelVersion":
    missing = f"no model {name} with alias {alias} in {without_login(uri)}"
    client = _asked(uri, missing)
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ModelNotFound(f"{missing}: make one (headrace train, headrace models register)") from None


def _download(uri: str, source: str, folder: Path, what: str, expected: str) -> None:
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        try:
            files = Path(download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=uri))
        except OSError as error:
            raise ModelNotFound(f"{what}: its files are gone from {source}: train it again ({error})") from None
        got = digest(files)
        if got != expected:
            raise DigestMismatch(f"{what}: files at {source}: expected digest {expected}, got {got}")
        if folder.exists() and not _holds(folder, expected):
            shutil.rmtree(folder)
        try:
            files.rename(folder)
        except OSError:
            if not _holds(folder, expected):
                raise


def _holds(folder: Path, expected: str) -> bool:
    """Whether a folder is there and has the files of a digest, as they are."""
    try:
        return folder.is_dir() and digest(folder) == expected
    except ValueError:
        return False


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _quietly() -> None:
    """Has MLflow tell nobody that it is used, and draw no bars: before it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _client(uri: str) -> "MlflowClient":
    _quietly()
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(uri, uri)


def _experiment(client: "MlflowClient", name: str, database: Path | None) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    where = None if database is None else (database.parent / "artifacts" / name).absolute().as_uri()
    return str(client.create_experiment(name, artifact_location=where))


def _register(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
