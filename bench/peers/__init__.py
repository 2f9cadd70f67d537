"""Systems to put beside headrace: each a program of its own that reads a topic and writes another, until SIGTERM.

PEERS has those that are known by name. Some live in a venv of their own (`python -m bench.peers.venvs NAME`); Kafka Streams and
Flink are looked for where HEADRACE_PEERS_JVM says, else beside the checkout.
"""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
JVM = os.environ.get("HEADRACE_PEERS_JVM") or str(ROOT.parent / "shared" / "peers-jvm")
BATCH_BYTES = 1_000_000
PLACES = "{brokers} {input} {output}"
SCORED = f"{PLACES} {{model}}/model.onnx {{width}}"
STORED = f"{PLACES} {{model}} {{repo}} {{linger}} {{home}}"
VENV = "{python} -m bench.peers.in_venv"


@dataclass(frozen=True)
class Peer:
    """A system beside headrace. command: with the placeholders of `--peer NAME=COMMAND`; workloads: those it does (none: all);
    settings: what is printed beside its figures, where it is not as the run's settings say; passes_on: it is a relay."""

    command: str
    workloads: tuple[str, ...]
    settings: dict[str, str]
    passes_on: bool = False


def java(program: str, threads: int, commit: str) -> Peer:
    """Kafka Streams or Flink, as ../shared/peers-jvm has them, with the batch.size of librdkafka: Java's own, 16 kB, holds one
    of Crayfish's messages."""
    command = f"java -Xmx4g -Dlinger={{linger}} -Dbatch={BATCH_BYTES} -cp {JVM}/lib/* {program} {SCORED} {threads}"
    settings = {"threads": str(threads), "guarantee": "at least once", "commit": commit, "heap": "4 GB"}
    settings |= {"batch.size": f"{BATCH_BYTES:,}"}
    return Peer(command, ("crayfish", "vector"), settings)


DENSE = ("crayfish", "crayfish_short", "vector")
QUIX = {"threads": "1", "guarantee": "at least once", "commit": "1 s", "versions": "bench/peers/requirements"}
PEERS = {
    "relay": Peer(
        f"{{python}} -m bench.peers.relay {PLACES} {{linger}} {{passes}}",
        (),
        {"threads": "1", "guarantee": "none: starts anew", "does": "passes messages on"},
        passes_on=True,
    ),
    "loop": Peer(
        f"{{python}} -m bench.peers.loop {{workload}} {SCORED} {{linger}}",
        DENSE,
        {"threads": "1", "guarantee": "at least once", "commit": "1 s", "batch": "512 messages at most"},
    ),
    "quix": Peer(f"{VENV} quix bench.peers.quix {{workload}} {SCORED} {{linger}} {{home}}", DENSE, QUIX),
    "quix-flights": Peer(
        f"{VENV} quix-flights bench.peers.quix_flights {STORED}",
        ("flights",),
        QUIX | {"state": "RocksDB with changelog topics", "stored features": "read from Feast once, at the start"},
    ),
    "bytewax-feast": Peer(
        f"{VENV} bytewax-feast bench.peers.bytewax_feast {STORED}",
        ("flights",),
        {
            "threads": "1",
            "guarantee": "at least once",
            "commit": "1 s, recovery on",
            "stored features": "get_online_features, a row at a time",
            "versions": "bench/peers/requirements",
        },
    ),
    **{f"kstreams-{n}": java("KStreams", n, "30 s, its default: longer than the others'") for n in (1, 2)},
    **{f"flink-{n}": java("Flink", n, "1 s, checkpoints") for n in (1, 2)},
}


def known(name: str, workload: str) -> Peer:
    """One of ours. Raises ValueError if there is none of this name, or it does not do the workload."""
    able = sorted(other for other, peer in PEERS.items() if not peer.workloads or workload in peer.workloads)
    if name not in PEERS:
        raise ValueError(f"--peer {name}: expected NAME=COMMAND, or one of {', '.join(able)} for {workload}")
    if name not in able:
        does = ", ".join(PEERS[name].workloads)
        raise ValueError(f"--peer {name}: expected the workload {does}, got {workload}, which {', '.join(able)} do")
    return PEERS[name]
