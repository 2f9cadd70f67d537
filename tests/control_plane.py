"""A real Kubernetes control plane for the tests, without containers (KUBERNETES_HOME): its nodes are played."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("KUBERNETES_HOME") or Path(__file__).parents[2] / "shared" / "kubernetes")
START_SECONDS, BEAT_SECONDS, PORTS = 180.0, 10.0, 6
NAMESPACE, NODES = "decisions", ("node-1", "node-2", "gpu-1")


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

    def apply(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Makes these objects, or makes them so."""
        done = self.applied(objects)
        assert not done.returncode, done.stderr
        assert "Warning" not in done.stderr, done.stderr

    def applied(self, objects: Iterable[Mapping[str, Any]]) -> subprocess.CompletedProcess[str]:
        told = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        command = ["kubectl", "--request-timeout=10s", "apply", "-f", "-"]
        return subprocess.run(command, env=self.environment, input=told, capture_output=True, text=True, check=False)

    def helm(self, *arguments: str, **values: Any) -> str:
        """Without a warning."""
        done = self.try_helm(*arguments, **values)
        assert not done.returncode, f"{done.stderr}\n{self.state()}"
        assert "warning" not in done.stderr.lower(), done.stderr
        return done.stdout

    def try_helm(self, *arguments: str, **values: Any) -> subprocess.CompletedProcess[str]:
        file = self.folder / "values.json"
        file.write_text(json.dumps(values))
        more = ["--values", str(file)] if values else []
        return self.run("helm", "--namespace", NAMESPACE, *arguments, *more)

    def state(self) -> str:
        """What there is and what has happened, for who wonders why something did not."""
        asked = [["pods,statefulsets,jobs,persistentvolumeclaims,persistentvolumes", "-o", "wide"], ["events"]]
        return "\n".join(self.run("kubectl", "--namespace", NAMESPACE, "get", *each).stdout for each in asked)

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
            cluster, stop = Cluster(environment, folder, process.pid), threading.Event()
            beating = threading.Thread(target=beat, args=(cluster, stop), daemon=True)
            beating.start()
            try:
                yield cluster
            finally:
                stop.set()
                beating.join()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def more_volumes(cluster: Cluster, count: int = 16) -> None:
    """Adds ready volumes: there are eight, which are deleted with their claims."""
    volume = {
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "100Gi"},
        "storageClassName": "standard",
        "persistentVolumeReclaimPolicy": "Delete",
    }
    made = time.monotonic_ns()
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": volume | {"hostPath": {"path": f"/tmp/{name}"}},
        }
        for name in (f"more-{made}-{number}" for number in range(count))
    )


def beat(cluster: Cluster, stop: threading.Event) -> None:
    """Renews the leases of the nodes, as their kubelets would. After 50 s without, a node counts as not ready, and its pods do,
    too, and nobody who plays them makes those ready again. A beat that fails is tried again with the next."""
    while True:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        leases = [
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": node, "namespace": "kube-node-lease"},
                "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now},
            }
            for node in NODES
        ]
        if (said := cluster.applied(leases).stderr) and not stop.is_set():
            print(f"no heartbeat of the nodes: {said}")
        if stop.wait(BEAT_SECONDS):
            return


@contextmanager
def namespaced(cluster: Cluster) -> Iterator[Cluster]:
    """A namespace that takes only what the pod security level "restricted" allows, and is gone afterwards."""
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": levels}}])
    try:
        yield cluster
    finally:
        done = cluster.run("kubectl", "delete", "namespace", NAMESPACE, "--wait=true")
        assert not done.returncode, done.stderr
