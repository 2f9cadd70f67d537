"""Stops all pods of a release and waits until they are gone, from a pod of the cluster: before an upgrade of several pods."""

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ops.server import at

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ASK_SECONDS, LOOK_SECONDS = 10.0, 0.5


class NotStoppedError(RuntimeError):
    """The pods are still there, or nobody answers; the message says which and who."""


def stop(name: str, seconds: float, account: Path = ACCOUNT, environment: Mapping[str, str] = os.environ) -> bool:
    """Scales a StatefulSet of this pod's namespace to nothing and waits until its pods are gone; False if there is none.

    account: the folder with token, ca.crt and namespace. Raises NotStoppedError after so many seconds, and where the API server
    refuses.
    """
    host, port = environment["KUBERNETES_SERVICE_HOST"], int(environment["KUBERNETES_SERVICE_PORT"])
    namespace = (account / "namespace").read_text().strip()
    trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
    base = f"https://{at(host, port)}/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"

    def ask(method: str, path: str, body: Any = None) -> Any:
        headers = {
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            "Content-Type": "application/merge-patch+json",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{base}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=ASK_SECONDS, context=trusted) as answer:
            return json.load(answer)

    return scaled_down(ask, name, seconds)


def scaled_down(ask: Callable[..., Any], name: str, seconds: float) -> bool:
    """The same, with what asks the API server of a path below the StatefulSet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask("PATCH", "/scale", {"spec": {"replicas": 0}})
            while (left := pods_of(ask("GET", ""))) and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
            if left:
                raise NotStoppedError(f"{name}: {left} pods are still there after {seconds:.0f} s")
            return True
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return False
            if error.code < 500 and error.code != 429:
                raise NotStoppedError(f"{name}: the API server refuses to scale it: {error.code} {error.reason}") from None
            last = f"{error.code} {error.reason}"
        except (OSError, ValueError) as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise NotStoppedError(f"{name}: the API server does not answer: {last}")
        time.sleep(LOOK_SECONDS)


def pods_of(found: Mapping[str, Any]) -> int:
    """How many pods a StatefulSet has; at least one where its controller has not looked yet."""
    status = found.get("status", {})
    looked = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
    return int(status.get("replicas", 0)) if looked else max(1, int(status.get("replicas", 0)))
