"""The chart on a real Kubernetes control plane: installed, upgraded, rolled back, uninstalled, and what its pods are."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from control_plane import HOME, Cluster, namespaced
from payments import payments

from ops.deploy.release import CHART, values_of
from streams.settings import JobSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAIT = "--wait", "--timeout", "2m"
CRDS = (
    "podmonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com", "scaledobjects.keda.sh",
    "triggerauthentications.keda.sh",
)  # fmt: skip


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Cluster]:
    with namespaced(cluster):
        yield cluster


def release(**more: Any) -> dict[str, Any]:
    settings = JobSettings(brokers="kafka:9092", workers=3, registry="https://mlflow", epoch_seconds=0.5)
    return values_of("flights", payments(), settings, "registry.example/headrace:0.1.0") | more


def environment_of(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0]["env"]}


def with_operators(cluster: Cluster) -> None:
    """The server knows what Prometheus' operator and KEDA bring, though neither runs."""
    cluster.kubectl("apply", "--server-side", "-f", str(HOME / "crds"))
    for name in CRDS:
        cluster.kubectl("wait", "--for=condition=established", f"crd/{name}", "--timeout=60s")


def check_of(cluster: Cluster) -> dict[str, Any] | None:
    """The check before the last upgrade, or None if there was none."""
    return yaml.safe_load(cluster.helm("get", "hooks", "flights"))  # type: ignore[no-any-return]


def scale(cluster: Cluster, replicas: int) -> None:
    """As KEDA does it."""
    cluster.kubectl("scale", "statefulset", "flights", f"--replicas={replicas}")
    deadline = time.monotonic() + 60
    while len(cluster.pods()) != replicas:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_release_is_installed_upgraded_rolled_back_and_uninstalled(namespace: Cluster) -> None:
    cluster = namespace
    notes = cluster.helm("install", "flights", str(CHART), *WAIT, **release())
    assert "kubectl --namespace decisions logs flights-0 --follow" in notes
    first = cluster.pod()
    assert first["metadata"]["name"] == "flights-0"
    assert first["spec"]["containers"][0]["args"] == ["run", "flights", "--restart"]
    assert environment_of(first).items() >= {
        "HEADRACE_BROKERS": "kafka:9092", "HEADRACE_WORKERS": "3", "HEADRACE_REGISTRY": "https://mlflow",
        "HEADRACE_EPOCH_SECONDS": "0.5", "HEADRACE_HOME": "/var/lib/headrace",
    }.items()  # fmt: skip

    cluster.helm("upgrade", "flights", str(CHART), *WAIT, **release(workers=2))
    second = cluster.pod()
    assert environment_of(second)["HEADRACE_WORKERS"] == "2"
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    volumes = [[one for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one] for pod in (first, second)]
    assert volumes[0] == volumes[1], "the state stays where it is"

    other = release(image={"repository": "registry.example/headrace", "tag": "0.2.0", "digest": ""})
    cluster.helm("upgrade", "flights", str(CHART), *WAIT, **other)
    assert cluster.pod()["spec"]["containers"][0]["image"] == "registry.example/headrace:0.2.0"

    cluster.helm("rollback", "flights", "1", *WAIT)
    assert environment_of(cluster.pod())["HEADRACE_WORKERS"] == "3"
    assert cluster.pod()["spec"]["containers"][0]["image"] == "registry.example/headrace:0.1.0"

    cluster.helm("uninstall", "flights", "--wait", "--cascade", "foreground", "--timeout", "2m")
    assert cluster.pods() == []
    assert cluster.kubectl("get", "jobs", "-o", "json")["items"] == []
    (claim,) = cluster.kubectl("get", "persistentvolumeclaims", "-o", "json")["items"]
    assert claim["metadata"]["name"] == "home-flights-0", "what was decided up to where outlives the release"


def test_everything_that_may_be_asked_for_is_taken_by_the_server(namespace: Cluster) -> None:
    cluster = namespace
    with_operators(cluster)
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
    cluster.helm("install", "flights", str(CHART), *WAIT, **values)
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


def test_before_an_upgrade_it_is_checked_where_the_volume_is(namespace: Cluster) -> None:
    cluster, secret = namespace, {"secret": "keys", "key": "key"}
    more: dict[str, Any] = {
        "secrets": {"secret_key": secret, "password": secret},
        "secretEnv": {"MLFLOW_TRACKING_PASSWORD": secret},
        "nodeSelector": {"type": "kwok"},
    }
    cluster.helm("install", "flights", str(CHART), *WAIT, **release(**more))
    assert check_of(cluster) is None
    cluster.helm("upgrade", "flights", str(CHART), *WAIT, **release(**more, workers=2))
    job = check_of(cluster)
    assert job is not None
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 240)
    assert cluster.kubectl("get", "jobs", "-o", "json")["items"] == [], "it has gone well"

    checks = job["spec"]["template"]["spec"]
    runs = cluster.kubectl("get", "statefulset", "flights", "-o", "json")["spec"]["template"]["spec"]
    (check,), (pod,) = checks["containers"], runs["containers"]
    assert check["args"] == ["state", "check", "flights"]
    assert check["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert checks["securityContext"] == runs["securityContext"]
    assert (check["image"], check["securityContext"]) == (pod["image"], pod["securityContext"])
    told = {each["name"]: each for each in check["env"]}
    also = {each["name"]: each for each in pod["env"]}
    assert also.keys() - told.keys() == {"HEADRACE_METRICS_HOST", "HEADRACE_METRICS_PORT", "HEADRACE_HEALTH_PORT"}
    assert {name for name, each in told.items() if also.get(name) != each} == {"NUMBA_CACHE_DIR"}
    assert told["HEADRACE_WORKERS"]["value"] == "2"
    assert check["volumeMounts"] == pod["volumeMounts"]
    volumes = {each["name"]: each for each in checks["volumes"]}
    assert volumes.pop("home")["persistentVolumeClaim"]["claimName"] == "home-flights-0"
    assert volumes == {each["name"]: each for each in runs["volumes"]}
    (near,) = checks["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["topologyKey"] == "kubernetes.io/hostname"
    assert near["labelSelector"]["matchLabels"].items() <= cluster.pod()["metadata"]["labels"].items()
    assert "nodeSelector" not in checks, "the node that the pod has is right, whatever the next one needs"

    scale(cluster, 0)
    cluster.helm("upgrade", "flights", str(CHART), *WAIT, **release(**more))
    job = check_of(cluster)
    assert job is not None
    checks = job["spec"]["template"]["spec"]
    assert "affinity" not in checks, "nobody has the volume"
    assert checks["nodeSelector"] == {"type": "kwok"}
    assert environment_of(cluster.pod())["HEADRACE_WORKERS"] == "3"

    for without in ({"rebuild": True}, {"check": {"enabled": False}}):
        cluster.helm("upgrade", "flights", str(CHART), *WAIT, **release(**without))
        assert check_of(cluster) is None
    cluster.helm("uninstall", "flights", "--wait", "--cascade", "foreground", "--timeout", "2m")


def test_a_release_that_rests_is_scaled_by_keda_alone(namespace: Cluster) -> None:
    cluster, secret = namespace, {"secret": "kafka", "key": "password"}
    with_operators(cluster)
    scaling = release()["scaling"] | {"enabled": True, "activationLagThreshold": 2_000_000, "kafka": {"sasl": "scram_sha512"}}
    values = release(scaling=scaling | {"secrets": {"password": secret}})
    notes = cluster.helm("install", "flights", str(CHART), *WAIT, **values)
    assert "KEDA takes the pod away" in notes
    found = cluster.kubectl("get", "scaledobject", "flights", "-o", "json")["spec"]
    assert (found["idleReplicaCount"], found["minReplicaCount"], found["maxReplicaCount"]) == (0, 1, 1)
    assert found["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "flights"}
    (trigger,) = found["triggers"]
    assert trigger["metadata"] == {
        "bootstrapServers": "kafka:9092", "topic": "pay", "consumerGroup": "headrace-payments", "offsetResetPolicy": "earliest",
        "activationLagThreshold": "2000000", "sasl": "scram_sha512",
    }  # fmt: skip
    login = cluster.kubectl("get", "triggerauthentication", trigger["authenticationRef"]["name"], "-o", "json")["spec"]
    assert login == {"secretTargetRef": [{"parameter": "password", "name": "kafka", "key": "password"}]}
    assert cluster.pod()["metadata"]["name"] == "flights-0"

    scale(cluster, 0)
    cluster.helm("upgrade", "flights", str(CHART), *WAIT, **(values | {"workers": 2}))
    assert cluster.pods() == [], "an upgrade wakes nobody"
    scale(cluster, 1)
    assert environment_of(cluster.pod())["HEADRACE_WORKERS"] == "2"

    scale(cluster, 0)
    cluster.helm("upgrade", "flights", str(CHART), *WAIT, **release())
    assert len(cluster.pods()) == 1
    assert cluster.kubectl("get", "scaledobjects,triggerauthentications", "-o", "json")["items"] == []
    cluster.helm("uninstall", "flights", "--wait", "--cascade", "foreground", "--timeout", "2m")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"workers": 9}, "workers"),
        ({"brokers": ""}, "brokers"),
        ({"image": {"repository": "x", "tag": "latest"}}, "image"),
        ({"scaling": {"enabled": True}}, "scaling"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_changed(namespace: Cluster, changed: dict[str, Any], said: str) -> None:
    done = namespace.try_helm("install", "flights", str(CHART), **release(**changed))
    assert done.returncode
    assert "values don't meet the specifications of the schema" in done.stderr
    assert said in done.stderr
    assert namespace.kubectl("get", "pods", "-o", "json")["items"] == []
