"""A pipeline's release: the chart's values from the settings that it has here, and Helm, which does the rest."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from streams.lookup import FORMS
from streams.pipeline import Pipeline
from streams.settings import JobSettings

CHART = Path(__file__).parent / "chart"
OF_THE_CHART = {
    "home", "metrics_port", "metrics_host", "health_port", "machine", "meeting", "cluster_host", "revision"
}  # fmt: skip
"""Which the chart sets: the same in every pod."""
KEYS, LOGINS = ("secret_key", "dead_letter_key"), ("schema_registry", "schema_registry_login")
REFUSED, CHECK = "pre-upgrade hooks failed", "headrace-check"
"""What Helm says where the check before an upgrade fails, and what the chart calls the check's pods."""
ANEW = "In a release --rebuild is `rebuild: true`, in a file for --values (docs/kubernetes.md)"
WITHOUT = "`check: {enabled: false}`, in a file for --values, upgrades without it"
IMAGE = re.compile(r"(?P<name>[^@\s]+?)(?:@(?P<digest>sha256:[0-9a-f]{64})|:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]*))$")


class CannotDeployError(ValueError):
    """The settings cannot be those of a release; the message names the setting and what to do."""


def values_of(called: str, pipeline: Pipeline, settings: JobSettings, image: str) -> dict[str, Any]:
    """The chart's values for a pipeline: the settings that are not the defaults, and the image.

    Raises CannotDeployError for an image without tag or digest, and for what exists on this machine only: secrets, which the
    chart takes by reference (`secrets`), a registry of models in a file, and a Feast repo at an absolute path, or whose
    registry or online store is a file. Resources are for so many workers, each with a core, and a gigabyte for its state.
    """
    found = IMAGE.fullmatch(image)
    if found is None or found["tag"] == "latest":
        raise CannotDeployError(f"--image {image}: expected NAME:TAG, not latest, or NAME@sha256:DIGEST")
    told = settings.model_dump(mode="json", exclude_defaults=True)
    _check("registry", settings.registry)
    if pipeline.stored is not None:
        _reached(pipeline.repo(settings) / "feature_store.yaml")
    for name, value in told.items():
        _check(name, value)
    own = {name: value for name, value in told.items() if name not in {*OF_THE_CHART, "machines", "workers", "brokers"}}
    return {
        "pipeline": called,
        "image": {"repository": found["name"], "tag": found["tag"] or "", "digest": found["digest"] or ""},
        "pods": settings.machines,
        "workers": settings.workers,
        "brokers": settings.brokers,
        "settings": own,
        "resources": {
            "requests": {"cpu": str(settings.workers), "memory": f"{512 + 1024 * settings.workers}Mi"},
            "limits": {"memory": f"{1024 + 2048 * settings.workers}Mi"},
        },
        "graceSeconds": round(60 + settings.epoch_seconds),
        "scaling": {"topic": pipeline.events.topic, "group": pipeline.group},
    }


def _check(name: str, value: Any) -> None:
    if name in (*KEYS, *LOGINS):
        how = f"secrets: {{{name}: " if name in KEYS else f"secretEnv: {{HEADRACE_{name.upper()}: "
        raise CannotDeployError(
            f"setting {name}: a secret is not put into values; unset it here, and name a Secret of the cluster in a file for "
            f"--values: {how}{{secret: NAME, key: KEY}}}}"
        )
    if name == "feast_repo" and Path(value).is_absolute():
        raise CannotDeployError(f"setting {name}: expected a path in the image, relative to the project, got {value}")
    if name == "registry":
        said = urlsplit(value)
        if said.username or said.password:
            how = "secretEnv: {MLFLOW_TRACKING_USERNAME: ..., MLFLOW_TRACKING_PASSWORD: ...} in a file for --values"
            raise CannotDeployError(f"setting {name}: expected no login in the address (not shown): {how}")
        if said.scheme in ("", "sqlite", "file"):
            got = value or "none, which is a file in home"
            raise CannotDeployError(f"setting {name}: expected a registry that the cluster reaches, https://..., got {got}")
    if name == "kafka":
        for option, said in value.items():
            if said.startswith(FORMS) and not said.startswith("file:/etc/headrace/secrets/"):
                raise CannotDeployError(
                    f"setting kafka: {option}: {said} is of this machine; expected file:/etc/headrace/secrets/NAME, with "
                    f"secrets: {{NAME: {{secret: ..., key: ...}}}} in a file for --values"
                )


def _reached(file: Path) -> None:
    """Raises CannotDeployError for a Feast repo whose registry or online store is a file."""
    said = yaml.safe_load(file.read_text())
    registry, online = said.get("registry", ""), said.get("online_store") or {}
    path = str(registry.get("path", "") if isinstance(registry, dict) else registry)
    if "://" not in path:
        raise CannotDeployError(f"{file}: registry: expected one that the cluster reaches, such as s3://..., got {path}")
    if not isinstance(online, dict) or online.get("type", "sqlite") == "sqlite":
        raise CannotDeployError(f"{file}: online_store: expected one that the cluster reaches, such as redis, got a file")


def helm(
    release: str, namespace: str, values: Mapping[str, Any], files: Sequence[Path], *, install: bool, minutes: float = 35
) -> int:
    """Renders the release to stdout, or installs or upgrades it and waits until it is ready; Helm's exit code.

    Of an upgrade that the check before it refuses, the reason is said, which Helm does not say. Raises CannotDeployError where
    there is no Helm.
    """
    found = shutil.which("helm")
    if found is None:
        raise CannotDeployError("helm is not there: expected Helm 3 on the PATH (https://helm.sh/docs/intro/install)")
    how = ["upgrade", "--install", "--wait", "--timeout", f"{minutes:g}m"] if install else ["template"]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as own:
        json.dump(values, own)
        own.flush()
        more = [part for file in files for part in ("--values", str(file))]
        command = [found, *how, release, str(CHART), "--namespace", namespace, "--values", own.name, *more]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    print(done.stderr, end="", file=sys.stderr)
    if REFUSED in done.stderr:
        stopping = re.search(r"job (\S+-stop) failed", done.stderr)
        print(half_stopped(stopping[1], namespace) if stopping else refusal(release, namespace), file=sys.stderr)
    return done.returncode


def half_stopped(job: str, namespace: str) -> str:
    """What is to be said where pods were asked to go before an upgrade, and did not in time."""
    look = f"kubectl --namespace {namespace} logs job/{job}"
    return f"the pods could not all be stopped, and may be gone. Look: {look}. The next upgrade, or helm rollback, starts them"


def refusal(release: str, namespace: str) -> str:
    """What the check before an upgrade has found, as Kubernetes keeps it of the check's pod, or where to look for it."""
    of = ["--selector", f"app.kubernetes.io/name={CHECK},app.kubernetes.io/instance={release}"]
    kubectl, pods = ["kubectl", "--namespace", namespace], list[dict[str, Any]]()
    if shutil.which("kubectl"):
        asked = [*kubectl, "get", "pods", *of, "--sort-by", ".metadata.creationTimestamp", "--output", "json"]
        done = subprocess.run(asked, check=False, capture_output=True, text=True)
        pods = [] if done.returncode else json.loads(done.stdout)["items"]
    ended = [one["state"].get("terminated") or {} for pod in pods for one in pod["status"].get("containerStatuses", ())]
    said = [each["message"].strip() for each in ended if each.get("exitCode") and each.get("message")]
    if not said:
        look = " ".join([*kubectl, "describe", "jobs,pods", *of])
        return f"the check before the upgrade came to no result (or pods did not stop in time). Look: {look}\n{WITHOUT}"
    return f"the check before the upgrade refused it, and nothing was changed:\n{said[-1]}\n{ANEW}"
