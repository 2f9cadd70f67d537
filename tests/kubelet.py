"""Plays the kubelet of a control plane whose nodes are only played: a pod's container is a process, with its very command,
environment, volumes and probes.

A pod has an address of its own on the loopback. What is mounted is a folder, and a path below where it is mounted is one below
that folder, in arguments and in the environment; of the image there is only the entry point, so what else is in its file system
is the machine's. A container that ends is started again after a second, not after a back-off that grows; one of a pod that does
not want that ends its pod.
"""

import http.client
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

LOOK_SECONDS, BEAT_SECONDS, AGAIN_SECONDS = 0.2, 5.0, 1.0
MESSAGE_BYTES = 2048


class Api:
    """The API server, through `kubectl proxy` at an address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self._address}{path}", data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def merge(self, path: str, body: Any) -> Any:
        """A strategic merge patch."""
        return self.ask("PATCH", path, body, "application/strategic-merge-patch+json")


@dataclass
class Probe:
    """One of a container's probes: counts how it comes out, as often as it says."""

    said: Mapping[str, Any]
    due: float
    passed: int = 0
    failed: int = 0

    def look(self, address: str, ports: Mapping[str, int], now: float) -> bool:
        """Asks if it is time; whether it was."""
        if now < self.due:
            return False
        self.due = now + self.said.get("periodSeconds", 10)
        get = self.said["httpGet"]
        port = ports.get(get["port"], get["port"])
        connection = http.client.HTTPConnection(get.get("host", address), port, timeout=self.said.get("timeoutSeconds", 1))
        try:
            connection.request("GET", get["path"])
            good = 200 <= connection.getresponse().status < 400
        except OSError:
            good = False
        finally:
            connection.close()
        self.passed, self.failed = (self.passed + 1, 0) if good else (0, self.failed + 1)
        return True

    @property
    def gone(self) -> bool:
        """Whether it has failed so often, one after the other, that something is done about it."""
        return self.failed >= self.said.get("failureThreshold", 3)


@dataclass
class Pod:
    """A pod that was started here, its process if it runs, how often that was started again, and the code that it ended with if
    it is not to be."""

    made: dict[str, Any]
    address: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    begins_at: float = 0.0
    restarts: int = -1
    started: bool = False
    ready: bool = False
    deleted: bool = False
    leaves_by: float = 0.0
    code: int | None = None
    family: set[psutil.Process] = field(default_factory=set)
    probes: dict[str, Probe] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        meta = self.made["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.made["spec"]["containers"]
        return container  # type: ignore[no-any-return]


class Kubelet:
    """Runs the pods of a namespace until it is closed. entry: the image's entry point; image: the environment that the image
    has; work: the folder that it works in; certificate: the API server's."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        folder: Path,
        entry: Sequence[str],
        image: Mapping[str, str],
        work: Path,
        certificate: Path,
    ) -> None:
        self._api, self._namespace, self.folder, self._certificate = api, namespace, folder, certificate
        self._entry, self._image, self._work = list(entry), dict(image), work
        self.pods: dict[str, Pod] = {}
        self.failed: list[str] = []
        self.names = folder / "names.json"
        self.names.write_text("{}")
        self._next_beat, self._number = 0.0, 1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet")

    def __enter__(self) -> "Kubelet":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        for pod in self.pods.values():
            self._kill(pod)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - the test is to hear of it
                self.failed.append(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            self._beat()
        listed = self._api.ask("GET", f"/api/v1/namespaces/{self._namespace}/pods")["items"]
        for made in listed:
            uid = made["metadata"]["uid"]
            if uid not in self.pods:
                if "nodeName" not in made["spec"]:
                    continue
                self._number += 1
                name = made["metadata"]["name"]
                self.pods[uid] = Pod(made, f"127.0.0.{self._number}", self.folder / f"{name}-{self._number}.log")
            pod = self.pods[uid]
            if "deletionTimestamp" in made["metadata"]:
                self._leave(pod, made["metadata"].get("deletionGracePeriodSeconds", 30), now)
            else:
                self._keep(pod, now)
        for uid in self.pods.keys() - {made["metadata"]["uid"] for made in listed}:
            self._kill(self.pods.pop(uid))  # deleted by force
        self._name()

    def _name(self) -> None:
        """Writes down the names that pods have by headless services, for tests/names/sitecustomize.py."""
        found = {}
        for service in self._api.ask("GET", f"/api/v1/namespaces/{self._namespace}/services")["items"]:
            said, wanted = service["spec"], (service["spec"].get("selector") or {}).items()
            for pod in self.pods.values():
                named = pod.made["spec"].get("subdomain") == service["metadata"]["name"] and said.get("clusterIP") == "None"
                there = pod.process is not None and (pod.ready or said.get("publishNotReadyAddresses"))
                if named and there and wanted <= pod.made["metadata"]["labels"].items():
                    found[f"{pod.made['spec']['hostname']}.{service['metadata']['name']}"] = pod.address
        new = self.names.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.rename(self.names)

    def _beat(self) -> None:
        for node in self._api.ask("GET", "/api/v1/nodes")["items"]:
            at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": at}
            self._api.merge(f"/api/v1/nodes/{node['metadata']['name']}/status", {"status": {"conditions": [ready]}})

    def _keep(self, pod: Pod, now: float) -> None:
        if pod.process is None:
            if pod.code is None and now >= pod.begins_at:
                self._start(pod, now)
            return
        if (code := pod.process.poll()) is not None:
            self._kill(pod)
            pod.why.append(f"ended with code {code}")
            if pod.made["spec"]["restartPolicy"] == "Never":
                pod.code = code if code >= 0 else 128 - code
            self._rest(pod, now)
            return
        if pod.leaves_by:
            if now > pod.leaves_by:
                self._kill(pod)
                self._rest(pod, now)
            return
        with suppress(psutil.Error):
            pod.family |= {*psutil.Process(pod.process.pid).children(recursive=True)}
        ports = {port["name"]: port["containerPort"] for port in pod.container.get("ports", ())}
        startup, live, ready = (pod.probes.get(f"{kind}Probe") for kind in ("startup", "liveness", "readiness"))
        if not pod.started:
            if startup is not None and startup.look(pod.address, ports, now) and startup.gone:
                self._again(pod, "was not ready in time", now)
            elif startup is None or startup.passed:
                pod.started = True
                self._say(pod)
            return
        if live is not None and live.look(pod.address, ports, now) and live.gone:
            self._again(pod, "its liveness probe failed", now)
            return
        if ready is not None and ready.look(pod.address, ports, now):
            is_ready = pod.ready if not (ready.gone or ready.passed) else not ready.gone
            if is_ready != pod.ready:
                pod.ready = is_ready
                self._say(pod)

    def _start(self, pod: Pod, now: float) -> None:
        folders = self._mounted(pod)
        said = {each["name"]: _below(self._value(pod, each), folders) for each in pod.container.get("env", ())}
        environment = self._image | said | {"PLAYED_NAMES": str(self.names)}
        arguments = [_below(each, folders) for each in pod.container.get("args", ())]
        with pod.log.open("ab") as log:
            pod.process = subprocess.Popen(
                [*self._entry, *arguments], env=environment, cwd=self._work, stdout=log, stderr=log, start_new_session=True
            )
        pod.restarts, pod.started, pod.ready = pod.restarts + 1, False, False
        pod.probes = {
            kind: Probe(said, now + said.get("initialDelaySeconds", 0))
            for kind, said in pod.container.items()
            if kind.endswith("Probe")
        }
        self._say(pod)

    def _mounted(self, pod: Pod) -> dict[str, Path]:
        """The folder of each place where something is mounted."""
        volumes = {each["name"]: each for each in pod.made["spec"]["volumes"]}
        found = {}
        for mount in pod.container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if claim := volume.get("persistentVolumeClaim"):
                path = f"/api/v1/namespaces/{self._namespace}/persistentvolumeclaims/{claim['claimName']}"
                folder = self.folder / self._api.ask("GET", path)["metadata"]["uid"]
            else:
                folder = self.folder / pod.made["metadata"]["uid"] / mount["name"]
            folder.mkdir(parents=True, exist_ok=True)
            for source in volume.get("projected", {}).get("sources", ()):
                self._project(pod, source, folder)
            found[mount["mountPath"]] = folder
        return found

    def _project(self, pod: Pod, source: Mapping[str, Any], folder: Path) -> None:
        """Of what a projected volume holds, that of a service account. The cluster's certificate is not published here."""
        if token := source.get("serviceAccountToken"):
            account = pod.made["spec"]["serviceAccountName"]
            path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token"
            asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
            (folder / token["path"]).write_text(self._api.ask("POST", path, asked)["status"]["token"])
            (folder / "namespace").write_text(self._namespace)
            (folder / "ca.crt").write_bytes(self._certificate.read_bytes())

    def _value(self, pod: Pod, said: Mapping[str, Any]) -> str:
        if "valueFrom" not in said:
            return str(said.get("value", ""))
        if "fieldRef" in said["valueFrom"]:
            path = said["valueFrom"]["fieldRef"]["fieldPath"]
            labels = {f"metadata.labels['{name}']": value for name, value in pod.made["metadata"]["labels"].items()}
            return {"status.podIP": pod.address, "metadata.name": pod.made["metadata"]["name"], **labels}[path]
        raise NotImplementedError(f"the environment from {said['valueFrom']}")

    def _again(self, pod: Pod, why: str, now: float) -> None:
        """The container is to end, for which it has its time, and to be started again."""
        assert pod.process is not None
        pod.why.append(why)
        pod.process.terminate()
        pod.leaves_by = now + pod.made["spec"]["terminationGracePeriodSeconds"]

    def _rest(self, pod: Pod, now: float) -> None:
        """The container has ended; it is started again in a second, if it is."""
        pod.begins_at, pod.leaves_by = now + AGAIN_SECONDS, 0.0
        pod.started = pod.ready = False
        self._say(pod)

    def _leave(self, pod: Pod, grace: float, now: float) -> None:
        """A pod that is being deleted is gone when its process is."""
        if pod.process is not None and not pod.deleted:
            pod.deleted, pod.leaves_by = True, now + grace
            pod.process.terminate()
        if pod.process is not None and pod.process.poll() is None and now < pod.leaves_by:
            return
        if pod.process is not None and pod.process.poll() is None:
            pod.why.append("did not leave in time and was killed")
        self._kill(pod)
        try:
            self._api.ask("DELETE", pod.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.made["metadata"]["uid"]}})
        except urllib.error.HTTPError as error:
            if error.code not in (404, 409):
                raise

    def _kill(self, pod: Pod) -> None:
        """All processes of the container: none outlives the first."""
        if pod.process is not None:
            with suppress(psutil.Error):
                pod.family |= {*psutil.Process(pod.process.pid).children(recursive=True)}
            pod.process.kill()
            for each in pod.family:
                with suppress(psutil.Error):
                    each.kill()
            pod.process.wait()
            psutil.wait_procs(pod.family, 10)
            pod.process, pod.family = None, set()

    def _say(self, pod: Pod) -> None:
        """The pod's status."""
        at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        phase, state = "Running", dict[str, Any](waiting={"reason": "CrashLoopBackOff"})
        if pod.process is not None:
            state = {"running": {"startedAt": at}}
        elif pod.code is not None:
            phase, why = ("Failed", "Error") if pod.code else ("Succeeded", "Completed")
            state = {"terminated": {"exitCode": pod.code, "reason": why, "message": _last(pod)}}
        container = {
            "name": pod.container["name"], "image": pod.container["image"], "imageID": pod.container["image"],
            "ready": pod.ready, "started": pod.started, "restartCount": max(0, pod.restarts),
            "state": state,
        }  # fmt: skip
        is_ready = "True" if pod.ready else "False"
        conditions = [
            {"type": kind, "status": status, "lastTransitionTime": at}
            for kind, status in (("Initialized", "True"), ("ContainersReady", is_ready), ("Ready", is_ready))
        ]
        status = {"phase": phase, "hostIP": "127.0.0.1", "podIP": pod.address, "podIPs": [{"ip": pod.address}]}
        try:
            self._api.merge(
                f"{pod.path}/status", {"status": status | {"conditions": conditions, "containerStatuses": [container]}}
            )
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise


def _last(pod: Pod) -> str:
    """What is kept of the last words of a container that failed, where it asks for that."""
    asked = pod.container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    return pod.log.read_bytes()[-MESSAGE_BYTES:].decode(errors="replace") if pod.code and asked else ""


def _below(text: str, folders: Mapping[str, Path]) -> str:
    """A text in which paths below places where something is mounted are those of the folders."""
    for place, folder in sorted(folders.items(), key=lambda each: -len(each[0])):
        if text == place or text.startswith(f"{place}/"):
            return f"{folder}{text[len(place) :]}"
    return text
