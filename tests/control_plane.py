"""A real Kubernetes control plane for the tests, without containers (KUBERNETES_HOME): its nodes are played."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("KUBERNETES_HOME") or Path(__file__).parents[2] / "shared" / "kubernetes")
START_SECONDS, PORTS = 180.0, 6
NAMESPACE = "decisions"


@dataclass(frozen=True)
class Cluster:
    """What kubectl and Helm are told by, a folder for values, and the process that started all of it."""

    environment: dict[str, str]
    folder: Path
    process: int

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def kubectl(self, *arguments: str) -> Any:
        done = self.run("kubectl", "--namespace", NAMESPACE, *arguments)
        assert not done.returncode, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        return json.loads(done.stdout) if "json" in arguments else done.stdout

    def helm(self, *arguments: str, **values: Any) -> str:
        """Without a warning."""
        done = self.try_helm(*arguments, **values)
        assert not done.returncode, done.stderr
        assert "warning" not in done.stderr.lower(), done.stderr
        return done.stdout

    def try_helm(self, *arguments: str, **values: Any) -> subprocess.CompletedProcess[str]:
        file = self.folder / "values.json"
        file.write_text(json.dumps(values))
        more = ["--values", str(file)] if values else []
        return self.run("helm", "--namespace", NAMESPACE, *arguments, *more)

    def pods(self) -> list[dict[str, Any]]:
        """Those of releases, without what looks before an upgrade."""
        return self.kubectl("get", "pods", "-l", "app.kubernetes.io/name=headrace", "-o", "json")["items"]  # type: ignore[no-any-return]

    def pod(self) -> dict[str, Any]:
        """The only one there is."""
        (pod,) = self.pods()
        return pod


def free_ports() -> int:
    """The first of six ports in a row that nobody listens on; tests that run side by side look at other ones."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(16_443 + 1_000 * worker, 17_400 + 1_000 * worker, 97):
        try:
            for port in range(first, first + PORTS):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no ports are free")


@contextmanager
def control_plane(folder: Path) -> Iterator[Cluster]:
    """Starts one, and ends it."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(HOME / "start"), str(folder / "plane"), str(free_ports())], stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (folder / "plane" / "ready").exists() or "PATH=" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the control plane is not ready"
                time.sleep(0.2)
            (folder / "plane" / "kubeconfig").chmod(0o600)  # Helm warns of one that others may read
            said = (folder / "log").read_text().partition("PATH=")[2].partition(":$PATH")[0]
            environment = os.environ | {
                "KUBECONFIG": str(folder / "plane" / "kubeconfig"),
                "PATH": f"{said}:{os.environ['PATH']}",
                **{f"HELM_{kind}_HOME": str(folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")},
            }
            yield Cluster(environment, folder, process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def more_volumes(cluster: Cluster, count: int = 16) -> None:
    """Adds ready volumes: there are eight, which nobody makes ready again when their claims are gone."""
    (like, *_) = cluster.kubectl("get", "persistentvolumes", "pv-0", "pv-1", "-o", "json")["items"]
    kept = {
        name: like["spec"][name] for name in ("accessModes", "capacity", "storageClassName", "persistentVolumeReclaimPolicy")
    }
    for number in range(count):
        name = f"more-{number}"
        made = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}}
        file = cluster.folder / f"{name}.json"
        file.write_text(json.dumps(made | {"spec": kept | {"hostPath": {"path": f"/tmp/{name}"}}}))
        cluster.kubectl("apply", "-f", str(file))


@contextmanager
def namespaced(cluster: Cluster) -> Iterator[Cluster]:
    """A namespace that takes only what the pod security level "restricted" allows, and is gone afterwards."""
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": levels}}
    file = cluster.folder / "namespace.json"
    file.write_text(json.dumps(made))
    cluster.kubectl("apply", "-f", str(file))
    try:
        yield cluster
    finally:
        done = cluster.run("kubectl", "delete", "namespace", NAMESPACE, "--wait=true")
        assert not done.returncode, done.stderr
