"""Systems to put beside headrace: each a program of its own that reads a topic and writes another, until SIGTERM.

COMMANDS has those that are known by name, as command lines with the placeholders of `--peer NAME=COMMAND`. Kafka Streams and
Flink are looked for where HEADRACE_PEERS_JVM says, else beside the checkout.
"""

import os
from pathlib import Path

JVM = os.environ.get("HEADRACE_PEERS_JVM") or str(Path(__file__).parent.parent.parent.parent / "shared" / "peers-jvm")
JAVA = f"java -Xmx4g -Dlinger={{linger}} -cp {JVM}/lib/*"
COMMANDS = {
    "relay": "{python} -m bench.peers.relay {brokers} {input} {output} {linger} {passes}",
    "kstreams-1": f"{JAVA} KStreams {{brokers}} {{input}} {{output}} {{model}}/model.onnx {{width}} 1",
    "kstreams-2": f"{JAVA} KStreams {{brokers}} {{input}} {{output}} {{model}}/model.onnx {{width}} 2",
    "flink-1": f"{JAVA} Flink {{brokers}} {{input}} {{output}} {{model}}/model.onnx {{width}} 1",
    "flink-2": f"{JAVA} Flink {{brokers}} {{input}} {{output}} {{model}}/model.onnx {{width}} 2",
}
