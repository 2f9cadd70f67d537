"""The chart's own words, run: its pod's command, environment, volumes and probes on a real control plane, with a kubelet that
is played (tests/kubelet.py), and a load that goes on through all that becomes of the pod."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from control_plane import NAMESPACE, Cluster, more_volumes, namespaced
from kubelet import Api, Kubelet, Pod

from bench.brokers import Served, counting
from bench.proving.lives import Stand
from bench.proving.stream import Counted, Stream, counted, streaming
from bench.soak import topics
from ops.broker import Broker, free_port
from ops.deploy.release import CHART, helm

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
RATE, LONGEST_SECONDS = 300.0, 180.0
OTHER = """
from dataclasses import replace

from bench.proving.job import pipeline
from features.spec import Window

before = pipeline("{name}")
job = replace(before, features=[*before.features[:2], Window("shared", "n", over="6h", aggs=("count",), tile="1h")])
"""


@contextmanager
def played(cluster: Cluster, folder: Path) -> Iterator[Kubelet]:
    """A kubelet in the place of the one that only says that pods run."""
    more_volumes(cluster)
    players = [each for each in psutil.Process(cluster.process).children() if each.name() == "kwok"]
    assert players
    port = free_port()
    proxy = subprocess.Popen(["kubectl", "proxy", f"--port={port}"], env=cluster.environment, stdout=subprocess.DEVNULL)
    server = yaml.safe_load(Path(cluster.environment["KUBECONFIG"]).read_text())["clusters"][0]["cluster"]["server"]
    image = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT / 'tests' / 'names'}:{ROOT}",
        "HOME": str(folder),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": server.rpartition(":")[2],
    }
    certificate = cluster.folder / "plane" / "certs" / "apiserver.crt"
    entry = [sys.executable, "-m", "ops"]
    try:
        for each in players:
            each.suspend()
        time.sleep(2)  # the proxy listens
        with Kubelet(Api(f"127.0.0.1:{port}"), NAMESPACE, folder, entry, image, folder, certificate) as kubelet:
            yield kubelet
    finally:
        for each in players:
            each.resume()
        proxy.terminate()
        proxy.wait()


class Scene:
    """A release of the prover's pipeline, what its decisions are counted by, and what is done to it."""

    def __init__(self, cluster: Cluster, kubelet: Kubelet, stand: Stand, found: Counted) -> None:
        self.cluster, self.kubelet, self.stand, self.found = cluster, kubelet, stand, found

    def values(self, **more: Any) -> dict[str, Any]:
        made = {
            "pipeline": f"{self.stand.file.name}:job",
            "image": {"repository": "registry.example/headrace", "tag": "0.1.0"},
            "workers": 3,
            "brokers": self.stand.served.address,
            "settings": {"registry": self.stand.base.registry_uri, "model_look_seconds": 0},
            "metrics": {"port": 19_464},
            "health": {"port": 19_463},
        }
        return made | more

    def helm(self, *arguments: str, **more: Any) -> None:
        self.cluster.helm(*arguments, "pod", str(CHART), "--wait", "--timeout", "3m", **self.values(**more))

    def pods(self) -> list[Pod]:
        """Those of the release that run, by their names."""
        running = [each for each in list(self.kubelet.pods.values()) if each.process is not None and not each.deleted]
        named = {each.made["metadata"]["name"]: each for each in running}
        return [named[name] for name in sorted(named) if name.removeprefix("pod-").isdigit()]

    def pod(self) -> Pod:
        """The one that runs."""
        (pod,) = self.pods()
        return pod

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS
        while not true():
            assert time.monotonic() < deadline, f"{what}: {self.kubelet.failed}, {self.said()[-3000:]}"
            time.sleep(0.2)

    def said(self) -> str:
        """What the pods have said, the newest last."""
        logs = sorted(self.kubelet.folder.glob("pod-*.log"), key=lambda log: log.stat().st_mtime)
        return "\n".join(log.read_text() for log in logs)

    def uninstall(self) -> None:
        self.cluster.helm("uninstall", "pod", "--wait", "--cascade", "foreground", "--timeout", "2m")

    def all_is_decided(self) -> None:
        """Waits until what was sent is decided, and looks whether it was right, with the release gone."""
        found, stream = self.found, self.found.stream
        with counting(self.stand.served, self.stand.load.target) as count:
            self.until(lambda: found.decided == stream.sent, f"{found.decided} of {stream.sent} are decided, {count()} written")
        self.uninstall()
        assert (found.decided, found.wrong) == (stream.sent, 0)

    def decides(self) -> None:
        """Waits until what comes from now on is decided."""
        sent = self.found.stream.sent
        self.until(lambda: self.found.decided > sent, "it decides no more")


def forks(pod: Pod) -> list[psutil.Process]:
    """The workers of a pod, which `headrace run --restart` has forked."""
    assert pod.process is not None
    job = psutil.Process(pod.process.pid)
    found = []
    for each in job.children():
        with suppress(psutil.Error):  # it has ended
            found += [each] if each.cmdline() == job.cmdline() else []
    return found


def kill(pod: Pod) -> None:
    """The container's first process dies."""
    assert pod.process is not None
    pod.process.kill()


@pytest.fixture
def scene(cluster: Cluster, apache_kafka: Broker, tmp_path: Path, name: Callable[[str], str]) -> Iterator[Scene]:
    served = Served("apache", apache_kafka.address, None)
    stand = Stand.made(served, tmp_path, name("pod"), "", {})
    topics(served, stand)
    stream = Stream(stand.load.name, RATE)
    with namespaced(cluster), played(cluster, tmp_path) as kubelet, counted(served.address, stream) as found:
        yield Scene(cluster, kubelet, stand, found)


def test_every_event_is_decided_whatever_becomes_of_the_pod(scene: Scene) -> None:
    cluster, kubelet, found, served = scene.cluster, scene.kubelet, scene.found, scene.stand.served
    stream = found.stream
    with streaming(served.address, stream):
        scene.helm("install")
        scene.decides()
        pod = scene.pod()
        assert (pod.ready, pod.restarts) == (True, 0)

        workers = forks(pod)
        assert len(workers) == 3
        workers[1].send_signal(signal.SIGKILL)
        scene.until(lambda: len({*forks(pod)} - {*workers}) == 3, "the workers are not started again")
        scene.decides()
        assert (pod.restarts, pod.why) == (0, []), "a worker that dies is started again in the pod"

        scene.helm("upgrade", workers=2)
        assert pod.process is None, "the old pod is gone before the new one is there"
        scene.decides()
        second = scene.pod()
        assert second is not pod

        kill(second)
        scene.until(lambda: second.restarts == 1 and second.ready, "the container is not started again")
        scene.decides()

        cluster.kubectl("delete", "persistentvolumeclaim", "home-pod-0", "--wait=false")
        cluster.kubectl("delete", "pod", "pod-0", "--wait=true")
        scene.until(lambda: "--rebuild makes the state anew" in scene.said(), "a lost volume is not told")
        scene.helm("upgrade", workers=2, rebuild=True)
        scene.decides()
        assert not kubelet.failed
    scene.all_is_decided()


def test_an_upgrade_that_cannot_go_on_with_the_state_is_refused_and_the_job_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster, kubelet, found, served = scene.cluster, scene.kubelet, scene.found, scene.stand.served
    stream, file = found.stream, scene.stand.file.with_name("other.py")
    file.write_text(OTHER.replace("{name}", scene.stand.load.name))
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    with streaming(served.address, stream):
        scene.helm("install")
        scene.decides()
        pod = scene.pod()

        capfd.readouterr()
        assert helm("pod", NAMESPACE, scene.values(pipeline=f"{file.name}:job"), [], install=True, minutes=3)
        _, said = capfd.readouterr()
        assert "pre-upgrade hooks failed" in said
        assert "the check before the upgrade refused it, and nothing was changed" in said
        assert "it has nothing for Window(" in said
        assert "over='6h'" in said
        assert f"headrace run {file.name}:job --rebuild makes the state anew" in said
        (ended,) = [each for each in list(kubelet.pods.values()) if each.code]
        assert ended.restarts == 0
        assert scene.pod() is pod
        assert (pod.ready, pod.restarts, pod.why) == (True, 0, []), "the old one goes on"
        scene.decides()

        scene.helm("upgrade", workers=2)
        assert cluster.kubectl("get", "jobs", "-o", "json")["items"] == [], "what can go on is let through"
        scene.decides()
        assert scene.pod() is not pod
        assert not kubelet.failed
    scene.all_is_decided()


THREE: dict[str, Any] = {"pods": 3, "workers": 1, "cluster": {"port": 19_470}}


def test_several_pods_decide_every_event_whatever_becomes_of_them(scene: Scene) -> None:
    cluster, kubelet, found, served = scene.cluster, scene.kubelet, scene.found, scene.stand.served
    stream = found.stream
    with streaming(served.address, stream):
        scene.helm("install", **THREE)
        scene.decides()
        pods = scene.pods()
        assert [(pod.ready, pod.restarts) for pod in pods] == [(True, 0)] * 3
        (worker,) = forks(pods[2])
        worker.send_signal(signal.SIGKILL)
        scene.until(lambda: forks(pods[2]) not in ([], [worker]), "the worker is not started again")
        scene.decides()
        kill(pods[1])
        scene.until(lambda: pods[1].restarts == 1 and all(pod.ready for pod in pods), "the container is not started again")
        scene.decides()
        assert [pod.restarts for pod in pods] == [0, 1, 0]

        scene.helm("upgrade", **THREE, image={"repository": "registry.example/headrace", "tag": "0.2.0"})
        assert all(pod.process is None for pod in pods), "all old pods are gone before the new ones are there"
        scene.decides()

        two = THREE | {"pods": 2}
        done = cluster.try_helm("upgrade", "pod", str(CHART), "--wait", "--timeout", "3m", **scene.values(**two))
        assert "pod-check failed" in done.stderr, "without a rebuild two pods cannot go on with what three have"
        assert [(pod.ready, pod.deleted) for pod in scene.pods()] == [(True, False)] * 3
        scene.decides()
        scene.helm("upgrade", **two, rebuild=True)
        scene.decides()
        assert len(scene.pods()) == 2
        scene.helm("upgrade", **two)
        scene.decides()

        cluster.kubectl("delete", "persistentvolumeclaim", "home-pod-1", "--wait=false")
        cluster.kubectl("delete", "pod", "pod-1", "--wait=true")
        told = "machine 1: expected its part of the recovery store of machine 0, got none"
        scene.until(lambda: told in scene.said(), "a lost volume is not told")
        scene.helm("upgrade", **two, rebuild=True)
        scene.decides()
        assert not kubelet.failed
    scene.all_is_decided()


def planted(folder: Path, right: str, wrong: str) -> Path:
    """The chart with another word in its StatefulSet."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    file = chart / "templates" / "statefulset.yaml"
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))
    return chart


def test_pods_that_are_started_one_after_the_other_fail(scene: Scene, tmp_path: Path) -> None:
    chart = planted(tmp_path, "podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady")
    with streaming(scene.stand.served.address, scene.found.stream):
        scene.cluster.helm("install", "pod", str(chart), **scene.values(**THREE))
        scene.until(lambda: "machine 0 of 3 waits for the others" in scene.said(), "it does not start")
        time.sleep(10)
    assert (len(scene.pods()), scene.found.decided) == (1, 0), "the first waits for the others, which wait for it to be ready"
    scene.uninstall()


def test_half_of_the_pods_with_another_version_fail(scene: Scene, tmp_path: Path) -> None:
    right = "type: RollingUpdate"
    chart = planted(tmp_path, right, f"{right}\n    rollingUpdate:\n      partition: 2")
    (chart / "templates" / "stop.yaml").unlink()
    with streaming(scene.stand.served.address, scene.found.stream):
        scene.cluster.helm("install", "pod", str(chart), "--wait", "--timeout", "3m", **scene.values(**THREE))
        scene.decides()
        other = scene.values(**THREE, image={"repository": "registry.example/headrace", "tag": "0.2.0"})
        scene.cluster.helm("upgrade", "pod", str(chart), **other)
        scene.until(lambda: "machine 2: another revision than machine 0" in scene.said(), "they do not wait for each other")
        time.sleep(3)
        decided = scene.found.decided
        time.sleep(10)
    assert scene.found.decided == decided, "two versions work together"
    scene.uninstall()


def test_health_that_is_on_the_loopback_alone_fails(scene: Scene, tmp_path: Path) -> None:
    name, indent = "- name: HEADRACE_METRICS_HOST\n", " " * 14
    right = f"{name}{indent}valueFrom:\n{indent}  fieldRef:\n{indent}    fieldPath: status.podIP\n"
    chart = planted(tmp_path, right, f"{name}{indent}value: 127.0.0.1\n")
    scene.cluster.helm("install", "pod", str(chart), **scene.values(workers=1))
    scene.until(lambda: "worker 0 of 1 ready" in scene.said(), "it is not ready")
    time.sleep(10)
    pod = scene.pod()
    assert (pod.started, pod.ready) == (False, False), "it could decide, and nobody could tell"
    scene.uninstall()
