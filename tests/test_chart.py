"""The chart on a real Kubernetes control plane: installed, upgraded, rolled back, uninstalled, and what its pods are."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import HOME, Cluster, namespaced
from payments import payments

from ops.deploy.release import CHART, values_of
from streams.settings import JobSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Cluster]:
    with namespaced(cluster):
        yield cluster


def release(**more: Any) -> dict[str, Any]:
    settings = JobSettings(brokers="kafka:9092", workers=3, registry="https://mlflow", epoch_seconds=0.5)
    return values_of("flights", payments(), settings, "registry.example/headrace:0.1.0") | more


def environment_of(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0]["env"]}


def test_a_release_is_installed_upgraded_rolled_back_and_uninstalled(namespace: Cluster) -> None:
    cluster = namespace
    notes = cluster.helm("install", "flights", str(CHART), "--wait", "--timeout", "2m", **release())
    assert "kubectl --namespace decisions logs flights-0 --follow" in notes
    first = cluster.pod()
    assert first["metadata"]["name"] == "flights-0"
    assert first["spec"]["containers"][0]["args"] == ["run", "flights", "--restart"]
    assert environment_of(first).items() >= {
        "HEADRACE_BROKERS": "kafka:9092", "HEADRACE_WORKERS": "3", "HEADRACE_REGISTRY": "https://mlflow",
        "HEADRACE_EPOCH_SECONDS": "0.5", "HEADRACE_HOME": "/var/lib/headrace",
    }.items()  # fmt: skip

    cluster.helm("upgrade", "flights", str(CHART), "--wait", "--timeout", "2m", **release(workers=2))
    second = cluster.pod()
    assert environment_of(second)["HEADRACE_WORKERS"] == "2"
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    volumes = [[one for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one] for pod in (first, second)]
    assert volumes[0] == volumes[1], "the state stays where it is"

    other = release(image={"repository": "registry.example/headrace", "tag": "0.2.0", "digest": ""})
    cluster.helm("upgrade", "flights", str(CHART), "--wait", "--timeout", "2m", **other)
    assert cluster.pod()["spec"]["containers"][0]["image"] == "registry.example/headrace:0.2.0"

    cluster.helm("rollback", "flights", "1", "--wait", "--timeout", "2m")
    assert environment_of(cluster.pod())["HEADRACE_WORKERS"] == "3"
    assert cluster.pod()["spec"]["containers"][0]["image"] == "registry.example/headrace:0.1.0"

    cluster.helm("uninstall", "flights", "--wait", "--cascade", "foreground", "--timeout", "2m")
    assert cluster.kubectl("get", "pods", "-o", "json")["items"] == []
    (claim,) = cluster.kubectl("get", "persistentvolumeclaims", "-o", "json")["items"]
    assert claim["metadata"]["name"] == "home-flights-0", "what was decided up to where outlives the release"


def test_everything_that_may_be_asked_for_is_taken_by_the_server(namespace: Cluster) -> None:
    cluster = namespace
    cluster.kubectl("apply", "--server-side", "-f", str(HOME / "crds"))
    for kind in ("podmonitors", "prometheusrules"):
        cluster.kubectl("wait", "--for=condition=established", f"crd/{kind}.monitoring.coreos.com", "--timeout=60s")
    secret = {"secret": "keys", "key": "key"}
    values = release(
        rebuild=True,
        secrets={"secret_key": secret, "password": secret},
        secretEnv={"MLFLOW_TRACKING_PASSWORD": secret},
        settings={"kafka": {"sasl.password": "file:/etc/headrace/secrets/password"}, "recovery": True},
        gpu={"count": 1, "resource": "nvidia.com/gpu"},
        metrics={"port": 9464, "podMonitor": True, "rules": True, "interval": "15s"},
        podDisruptionBudget={"enabled": True},
        networkPolicy={"enabled": True, "from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
    )
    cluster.helm("install", "flights", str(CHART), "--dry-run=server", **values)
    cluster.helm("install", "flights", str(CHART), "--wait", "--timeout", "2m", **values)
    pod = cluster.pod()
    (job,) = pod["spec"]["containers"]
    assert job["args"] == ["run", "flights", "--restart", "--rebuild"]
    assert environment_of(pod)["HEADRACE_SECRET_KEY"] == "file:/etc/headrace/secrets/secret_key"
    assert json.loads(environment_of(pod)["HEADRACE_KAFKA"]) == {"sasl.password": "file:/etc/headrace/secrets/password"}
    assert environment_of(pod)["HEADRACE_RECOVERY"] == "true"
    assert job["resources"]["limits"]["nvidia.com/gpu"] == "1"
    policy = cluster.kubectl("get", "networkpolicy", "flights", "-o", "json")["spec"]
    assert policy["ingress"][0]["ports"][1] == {"port": 9464, "endPort": 9466, "protocol": "TCP"}
    monitor = cluster.kubectl("get", "podmonitor", "flights", "-o", "json")["spec"]
    assert [each["port"] for each in monitor["podMetricsEndpoints"]] == ["metrics-0", "metrics-1", "metrics-2"]
    rules = cluster.kubectl("get", "prometheusrule", "flights", "-o", "json")["spec"]
    assert [group["name"] for group in rules["groups"]] == ["headrace"]
    assert {each["name"] for each in job["ports"]} == {"health", "metrics-0", "metrics-1", "metrics-2"}
    cluster.helm("uninstall", "flights", "--wait", "--cascade", "foreground", "--timeout", "2m")


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"workers": 9}, "workers"), ({"brokers": ""}, "brokers"), ({"image": {"repository": "x", "tag": "latest"}}, "image")],
)
def test_a_wrong_value_is_refused_before_anything_is_changed(namespace: Cluster, changed: dict[str, Any], said: str) -> None:
    done = namespace.try_helm("install", "flights", str(CHART), **release(**changed))
    assert done.returncode
    assert "values don't meet the specifications of the schema" in done.stderr
    assert said in done.stderr
    assert namespace.kubectl("get", "pods", "-o", "json")["items"] == []
