"""Systems to put beside headrace: each a program of its own that reads a topic and writes another, until SIGTERM.

COMMANDS has those that are known by name, as command lines with the placeholders of `--peer NAME=COMMAND`. Quix Streams lives
in a venv of its own (`python -m bench.peers.venvs quix`); Kafka Streams and Flink are looked for where HEADRACE_PEERS_JVM says,
else beside the checkout.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
JVM = os.environ.get("HEADRACE_PEERS_JVM") or str(ROOT.parent / "shared" / "peers-jvm")
JAVA = f"java -Xmx4g -Dlinger={{linger}} -cp {JVM}/lib/*"
PLACES = "{brokers} {input} {output}"
SCORED = f"{PLACES} {{model}}/model.onnx {{width}}"
COMMANDS = {
    "relay": f"{{python}} -m bench.peers.relay {PLACES} {{linger}} {{passes}}",
    "loop": f"{{python}} -m bench.peers.loop {SCORED} {{linger}}",
    "quix": f"{ROOT}/.peers/quix/bin/python {ROOT}/bench/peers/quix.py {SCORED} {{linger}} {{home}}",
    "kstreams-1": f"{JAVA} KStreams {SCORED} 1",
    "kstreams-2": f"{JAVA} KStreams {SCORED} 2",
    "flink-1": f"{JAVA} Flink {SCORED} 1",
    "flink-2": f"{JAVA} Flink {SCORED} 2",
}
