"""A release has the settings that its pipeline has here, and nothing of this machine."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from payments import payments

from ops.deploy.release import CHART, CannotDeployError, helm, values_of
from streams.flights import flights
from streams.settings import JobSettings

IMAGE = "registry.example/headrace:0.1.0"


def of(image: str = IMAGE, **settings: Any) -> dict[str, Any]:
    settings = {"registry": "https://mlflow:5000"} | settings
    return values_of("pay.py:pay", payments(), JobSettings(brokers="kafka-0:9092,kafka-1:9092", **settings), image)


def checked(values: dict[str, Any]) -> None:
    """As Helm does it: the chart's own values, those of the release over them, and the schema."""
    whole = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, value in values.items():
        whole[name] = whole[name] | value if isinstance(value, dict) else value
    jsonschema.validate(whole, json.loads((CHART / "values.schema.json").read_text()))


def test_settings_that_are_not_the_defaults_are_those_of_the_release() -> None:
    values = of(workers=2, epoch_seconds=1.0, home=Path("/here"), kafka={"acks": "all"})
    assert values["settings"] == {"epoch_seconds": 1.0, "registry": "https://mlflow:5000", "kafka": {"acks": "all"}}
    assert (values["workers"], values["brokers"], values["pipeline"]) == (2, "kafka-0:9092,kafka-1:9092", "pay.py:pay")
    assert values["image"] == {"repository": "registry.example/headrace", "tag": "0.1.0", "digest": ""}
    checked(values)
    digest = "sha256:" + 64 * "a"
    by_digest = of(f"localhost:5000/my-fraud@{digest}")
    assert by_digest["image"] == {"repository": "localhost:5000/my-fraud", "tag": "", "digest": digest}
    checked(by_digest)


def test_several_machines_are_several_pods() -> None:
    values = of(workers=2, machines=3)
    assert (values["pods"], values["workers"], values["settings"]) == (3, 2, {"registry": "https://mlflow:5000"})
    checked(values)


def test_what_wakes_a_job_that_rests_is_its_topic_and_group() -> None:
    values = of()
    assert values["scaling"] == {"topic": "pay", "group": "headrace-payments"}
    checked(values | {"scaling": values["scaling"] | {"enabled": True, "kafka": {"sasl": "plaintext"}}})


@pytest.mark.parametrize("image", ["headrace", "headrace:latest", "localhost:5000/headrace", "headrace@sha256:abc"])
def test_an_image_that_may_be_another_tomorrow_is_refused(image: str) -> None:
    with pytest.raises(CannotDeployError, match=f"^--image {image}: expected NAME:TAG, not latest, or NAME@sha256:DIGEST$"):
        of(image)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"secret_key": "file:/here/key"}, r"secrets: \{secret_key: \{secret: NAME, key: KEY\}\}"),
        ({"schema_registry_login": "me:hush"}, r"secretEnv: \{HEADRACE_SCHEMA_REGISTRY_LOGIN: \{secret: NAME, key: KEY\}\}"),
        ({"registry": "sqlite:////here/mlflow.db"}, "expected a registry that the cluster reaches"),
        ({"registry": ""}, "got none, which is a file in home"),
        ({"registry": "https://me:hush@mlflow"}, "secretEnv: .MLFLOW_TRACKING_USERNAME"),
        ({"feast_repo": Path("/here/repo")}, "expected a path in the image, relative to the project, got /here/repo"),
        ({"kafka": {"sasl.password": "env:PASSWORD"}}, "sasl.password: env:PASSWORD is of this machine"),
    ],
)
def test_what_is_of_this_machine_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotDeployError, match=said) as refused:
        of(**settings)
    assert str(refused.value).startswith(f"setting {next(iter(settings))}: ")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"workers": 9}, "9 is not one of"),
        ({"pipeline": ""}, "'' "),
        ({"brokers": "kafka"}, "'kafka' does not match"),
        ({"settings": {"workers": 2}}, "workers"),
        ({"secrets": {"secret_key": {"secret": "keys"}}}, "'key' is a required property"),
        ({"metrics": {"prot": 1}}, "prot"),
        ({"check": {"seconds": 5}}, "5 is less than the minimum"),
        ({"scaling": {"enabled": True, "topic": "", "group": "headrace-payments"}}, "''"),
        ({"scaling": {"kafka": {"topic": "other"}}}, "'topic' should not be valid under"),
        ({"scaling": {"secrets": {"password": "hush"}}}, "'hush' is not of type 'object'"),
    ],
)
def test_a_wrong_value_is_refused_by_the_schema(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=said):
        checked(of() | changed)


def test_every_number_of_workers_is_one_that_a_job_takes() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["workers"]["enum"] == [number for number in range(1, 65) if 840 % number == 0]


def test_a_feast_repo_that_is_in_files_is_refused() -> None:
    settings = JobSettings(registry="https://mlflow")
    with pytest.raises(CannotDeployError, match=r"feature_store.yaml: registry: expected one that the cluster reaches"):
        values_of("flights", flights, settings, IMAGE)


def test_without_helm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotDeployError, match=r"^helm is not there"):
        helm("flights", "default", of(), [], install=False)


TOLD = "headrace: recovery store /var/lib/headrace/recovery/payments: it has nothing for Window(...): headrace run ..."


@pytest.mark.parametrize(
    ("helm_says", "pods", "said"),
    [
        ("pre-upgrade hooks failed: job flights-check failed: BackoffLimitExceeded", [(0, ""), (1, f"{TOLD}\n")], TOLD),
        ("pre-upgrade hooks failed: job flights-check failed: DeadlineExceeded", [], "kubectl --namespace decisions describe"),
        ("pre-upgrade hooks failed: job flights-check failed: BackoffLimitExceeded", [(137, "")], "came to no result"),
        ("pre-upgrade hooks failed: job flights-stop failed: DeadlineExceeded", [], "logs job/flights-stop. The next upgrade"),
        ("timed out waiting for the condition", [(1, TOLD)], ""),
    ],
)
def test_why_an_upgrade_was_refused_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    helm_says: str,
    pods: list[tuple[int, str]],
    said: str,
) -> None:
    states = [{"state": {"terminated": {"exitCode": code, "message": message}}} for code, message in pods]
    items = [{"status": {}}, *({"status": {"containerStatuses": [state]}} for state in states)]
    (tmp_path / "pods.json").write_text(json.dumps({"items": items}))
    programs = {"helm": f"echo 'Error: {helm_says}' >&2; exit 3", "kubectl": f"exec /bin/cat {tmp_path}/pods.json"}
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert helm("flights", "decisions", of(), [], install=True) == 3
    out, err = capfd.readouterr()
    first, *rest = err.splitlines()
    assert (out, first) == ("", f"Error: {helm_says}")
    assert said in "\n".join(rest)
    assert bool(rest) == bool(said)
