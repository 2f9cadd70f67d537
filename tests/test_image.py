"""The image, made by its Dockerfile's own steps in a fresh Debian and run as a container is, but by no container engine: not
root, the root read-only. A project of one's own on top of it trains and decides."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dockerfile_player import LENT, Image, Lent, contained, entered, inside, kernel, play
from flights_job import Topic, kill, stop
from packaging.utils import canonicalize_name

from ops.broker import embedded
from ops.deploy.release import CHART
from ops.project import CHECKOUT, make
from ops.replay import replay
from ops.topics import counts

OF_AN_OLDER_PYTHON = "async-timeout"
"""Redis' client needs it before Python 3.11.3, which Debian's is."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

DEBIAN, PACKAGES = "bookworm", "ca-certificates,python-is-python3,python3-venv"
TORCH, PYPI = "https://download.pytorch.org/whl/cpu", "https://pypi.org/simple"
HOME, SBOM, USER = "/var/lib/headrace", "/usr/share/doc/headrace/sbom.cdx.json", 10001
TOOLS = {"apt-get", "dpkg"}
BUILD = {"as", "c++", "cc", "g++", "gcc", "ld", "make", "pip", "pip3"}
FETCHED = re.compile(r"(?i)(http|https|ftp|all|no)_proxy|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE")
EVENTS = 200


def missing() -> str:
    """What a fresh root cannot be made and entered without, and is not here."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "root on Linux"
    if not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return "a mount namespace (unshare --mount)"
    if not shutil.which("debootstrap") and not all(map(shutil.which, TOOLS)):
        return f"debootstrap, or {' and '.join(sorted(TOOLS))} to fetch it"
    return ""


def debootstrap(folder: Path) -> list[str]:
    """The one on the PATH, or Debian's, unpacked into the folder; apt's own lists are let be."""
    if found := shutil.which("debootstrap"):
        return [found]
    (folder / "lists").mkdir()
    options = f"-qq -o Dir::State::Lists={folder}/lists -o Dir::Cache::pkgcache= -o APT::Sandbox::User=root"
    apt = ["apt-get", *options.split()]
    for command in ([*apt, "update"], [*apt, "download", "debootstrap"]):
        subprocess.run(command, cwd=folder, check=True)
    (package,) = folder.glob("debootstrap_*.deb")
    subprocess.run(["dpkg", "--extract", str(package), str(folder)], check=True)
    return ["env", f"DEBOOTSTRAP_DIR={folder}/usr/share/debootstrap", f"{folder}/usr/sbin/debootstrap"]


def fresh(folder: Path) -> Image:
    """What stands in for Python's official image, which is this Debian, too: /usr/local has Python and pip."""
    root = folder / "debian"
    make_root = [*debootstrap(folder), "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root)]
    done = subprocess.run(["unshare", "--mount", *make_root], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-4000:]
    path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    inside(root, "/etc/hosts").write_text("127.0.0.1 localhost\n")
    image = Image(root, {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"})
    venv = entered(image, ["python3", "-m", "venv", "/usr/local"], kernel(root), image.environment)
    subprocess.run(venv, check=True)
    return image


def lent() -> Lent:
    """The way that pip fetches packages here: its settings, proxies and certificates, and the folders that these name."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = [line.partition("=") for line in done.stdout.splitlines()]
    told = {f"PIP_{name.rpartition('.')[2].replace('-', '_').upper()}": ast.literal_eval(value) for name, _, value in settings}
    told |= {name: value for name, value in os.environ.items() if name.startswith("PIP_") or FETCHED.fullmatch(name)}
    named = re.compile(r"(^|\s)((?:file://)?)(/\S+)")
    folders = {Path(found[3]).parent for value in told.values() for found in named.finditer(value)}
    environment = {name: named.sub(rf"\1\2{LENT}\3", value) for name, value in told.items()}
    return Lent(environment, [folder for folder in folders if folder.is_dir()])


def index(environment: Mapping[str, str]) -> dict[str, str]:
    """The argument TORCH: where nothing answers at PyTorch's index of builds for CPUs, the one that pip asks for all else."""
    try:
        urllib.request.urlopen(f"{TORCH}/torch/", timeout=3).close()
    except OSError:
        return {"TORCH": environment.get("PIP_INDEX_URL", PYPI)}
    return {}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """headrace's own."""
    if lacking := missing():
        pytest.skip(f"NO FRESH ROOT: it takes {lacking}: the image's steps are NOT tried without it")
    folder = tmp_path_factory.mktemp("image")
    try:
        ways = lent()
        arguments = {"PYTHON": "debian", **index(ways.environment)}
        file = (CHART.parent / "Dockerfile").read_text()
        yield play(file, CHECKOUT, folder / "made", {"debian": fresh(folder)}, arguments, ways)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return volume(tmp_path / "home")


def volume(folder: Path) -> Path:
    """A folder that the image's user may write to."""
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def said(image: Image, command: Sequence[str], volumes: dict[str, Path], **environment: str) -> str:
    """What a container says that ends well."""
    run = contained(image, command, volumes, environment)
    done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@contextmanager
def running(image: Image, volumes: dict[str, Path], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A container that does what the image says, killed at the end if it is still there."""
    command = contained(image, [*image.entrypoint, *image.command], volumes, environment)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def packages(image: Image) -> dict[str, str]:
    """What is installed in it for headrace, with versions."""
    (folder,) = inside(image.root, "/opt/headrace/lib").glob("python3.*/site-packages")
    return {canonicalize_name(each.name): each.version for each in distributions(path=[str(folder)])}


def test_there_is_nothing_to_build_with_and_nothing_left_over(image: Image) -> None:
    places = [inside(image.root, place) for place in image.environment["PATH"].split(":")]
    there = {path.name for place in places for path in place.iterdir()}
    assert "headrace" in there
    assert not there & BUILD
    left = [path for place in ("/tmp", "/root/.cache", "/source", "/opt/sbom") for path in inside(image.root, place).glob("*")]
    assert left == []
    assert not list(inside(image.root, "/opt").rglob("*.nbi")), "a kernel was compiled while the image was made"


def test_each_package_is_the_pinned_one_and_in_the_bill_of_materials(image: Image) -> None:
    installed = packages(image)
    lines = (CHART.parent / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines[1:])}
    own = {
        name: version.partition("+")[0] for name, version in installed.items() if name not in ("headrace", OF_AN_OLDER_PYTHON)
    }
    assert own == {name: pins.get(name) for name in own}
    bill = json.loads(inside(image.root, SBOM).read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "headrace"
    told = {canonicalize_name(each["name"]): each["version"] for each in bill["components"]}
    assert told == {name: version for name, version in installed.items() if name != "headrace"}
    assert {"bytewax", "onnxruntime", "torch"} < set(told)


def test_it_is_not_root_and_cannot_write_but_to_its_volume(image: Image, home: Path) -> None:
    volumes = {HOME: home}
    assert "Real-time decisions" in said(image, [*image.entrypoint, *image.command], volumes)
    look = 'id -u; touch /project/a 2>&1; touch /opt/headrace/a 2>&1; touch "$HEADRACE_HOME/a" "$HOME/a" && echo written'
    user, first, second, last = said(image, ["sh", "-c", look], volumes).splitlines()
    assert user == str(USER)
    assert first.endswith("Read-only file system")
    assert second.endswith("Read-only file system")
    assert last == "written"
    assert [path.name for path in home.iterdir()] == ["a"]


def test_a_project_is_one_copy_and_trains_and_decides(image: Image, home: Path, tmp_path: Path) -> None:
    project = tmp_path / "my-fraud"
    make(project)
    (name,) = re.findall(r"^FROM (\S+)$", (project / "Dockerfile").read_text(), re.MULTILINE)
    volumes = {HOME: home, "/project/feature_repo/data": volume(tmp_path / "data")}  # its Feast repo is in files
    events: list[dict[str, Any]] = [
        {
            "kind": "payment",
            "at": f"2024-03-25T10:{k // 60:02}:{k % 60:02}Z",
            "payment_id": k,
            "card": f"card-{k % 50:04}",
            "merchant": "merchant-001",
            "channel": "chip",
            "amount": 12.5,
        }
        for k in range(EVENTS)
    ]
    made = tmp_path / "made"
    try:
        own = play((project / "Dockerfile").read_text(), project, made, {name: image})
        with embedded() as broker:
            told = {"HEADRACE_BROKERS": broker.address, "HEADRACE_METRICS_PORT": "0"}
            assert "is champion" in said(own, ["headrace", "train", "pipeline.py"], volumes, **told)
            assert "my-fraud-events" in said(own, ["headrace", "topics", "pipeline.py", "--create"], volumes, **told)
            keys, values = [each["card"].encode() for each in events], [json.dumps(each).encode() for each in events]
            times = np.zeros(EVENTS, np.int64)
            replay({"bootstrap.servers": broker.address}, "my-fraud-events", keys, values, times, None)
            decisions = Topic(broker.address, "my-fraud-decisions")
            with running(own, volumes, **told) as process:
                decisions.read_until(EVENTS, process, timeout=300)
                assert own.stop_signal == "SIGTERM"
                stop(process)
            decisions.close()
            assert counts(broker.address, ["my-fraud-events.dead"], {}) == {"my-fraud-events.dead": [0]}
    finally:
        shutil.rmtree(made)
    assert {each["decision"] for each in decisions.messages} <= {"allow", "review", "block"}
    assert list((home / "numba").rglob("*.nbi")), "no kernel was kept for the next start"
    assert (home / "recovery").is_dir()
