"""What a figure was made on: machine, versions, commit."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from ops.broker import find_apache

PACKAGES = (
    "bytewax", "confluent-kafka", "feast", "numba", "numpy", "onnxruntime", "orjson", "polars", "pyarrow", "quixstreams",
)  # fmt: skip
ROOT = Path(__file__).parent.parent


def machine() -> dict[str, Any]:
    """cpu, cores, memory_gb, os, python."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.exists() else []
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the packages that matter, of Java, and of the Kafka that `--broker apache` takes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    java = _said("java", "-version")
    if match := re.search(r'version "([^"]+)"', java):
        found["java"] = match[1]
    kafka = find_apache()
    jars = [path.name for path in (kafka / "libs").glob("kafka-clients-*.jar")] if kafka else []
    if jars:
        found["kafka"] = jars[0].removeprefix("kafka-clients-").removesuffix(".jar")
    return found


def commit() -> tuple[str, bool]:
    """The checkout's commit, and whether files differ from it; empty and False without git."""
    head = _said("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()
    if not re.fullmatch("[0-9a-f]{40}", head):
        return "", False
    return head, bool(_said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no").strip())


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
