"""What tests share: brokers that are started and stopped for them, and topics of their own."""

import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from control_plane import HOME, Cluster, control_plane
from hypothesis import settings

from ops.broker import Broker, apache, embedded, find_apache, free_port

settings.register_profile("headrace", deadline=None, max_examples=60)
settings.load_profile("headrace")


@pytest.fixture(autouse=True)
def own_modules_first() -> None:
    """The processes that a test starts import the tests' own modules: other tests load pipelines of other folders, which are
    then first on the path."""
    here = str(Path(__file__).parent)
    if sys.path[0] != here:
        sys.path.insert(0, here)


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[Broker]:
    """The embedded broker, in memory: for one producer a partition. Of what several write at once it may lose some."""
    with embedded() as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Apache Kafka; skipped, and loudly, where there is none."""
    home = find_apache()
    if home is None:
        pytest.skip(
            "NO APACHE KAFKA: set KAFKA_HOME to a Kafka 4 download (and have Java 17): delivery is NOT proven without it"
        )
    with apache(home, Path(tmp_path_factory.mktemp("kafka"))) as broker:
        yield broker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Kubernetes control plane; skipped, and loudly, where there is none."""
    if not (HOME / "start").exists():
        pytest.skip("NO KUBERNETES: set KUBERNETES_HOME to a folder with `start`: the chart is NOT proven without it")
    with control_plane(tmp_path_factory.mktemp("kubernetes")) as made:
        yield made


def of_prometheus(program: str) -> str:
    """Prometheus or its promtool: as PROMETHEUS or PROMTOOL says, on the PATH, or where `make test` has unpacked it; skipped,
    and loudly, where there is none."""
    name = program.upper()
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.prefix) / "prometheus" / "usr" / "bin")])
    found = os.environ.get(name) or shutil.which(program, path=places)
    if not found:
        pytest.skip(f"NO {name}: put {program} on the PATH, or name it with {name}: what is watched is NOT proven without")
    return found


@pytest.fixture
def promtool() -> str:
    """What checks and tries alert rules."""
    return of_prometheus("promtool")


@pytest.fixture
def prometheus() -> str:
    """What scrapes metrics."""
    return of_prometheus("prometheus")


@pytest.fixture(params=["embedded", "apache"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn."""
    return request.getfixturevalue("embedded_broker" if request.param == "embedded" else "apache_kafka")


@pytest.fixture
def name() -> Callable[[str], str]:
    """Makes names of topics that no other test uses."""
    suffix = uuid.uuid4().hex[:8]
    return lambda topic: f"{topic}-{suffix}"


@pytest.fixture
def pair() -> int:
    """The first of two ports, one after the other, that nobody listens on."""
    while True:
        first = free_port()
        try:
            for port in (first, first + 1):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
