"""The honest rival: a loop over confluent-kafka that batches, as one writes it who knows the client and ONNX Runtime.

python -m bench.peers.loop BROKERS INPUT OUTPUT MODEL.onnx WIDTH LINGER_MS

Takes up to 4,096 messages at a time, reads each by orjson, scores all in one call of one thread, writes by `produce_batch`, and
commits its offsets once a second when everything before them is delivered. It knows Crayfish's messages (`dataPoint` as one
string, echoed with `prediction`) and flat ones (`{"id":n,"x":[...]}`, answered by `{"id":n,"score":s}`). Says "ready" when it
reads.
"""

import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition

MOST = 4096
WAIT_SECONDS = 0.001
COMMIT_SECONDS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 6:
        print(__doc__, file=sys.stderr)
        return 2
    brokers, source, target, model, width, linger = given
    leaving: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        leaving.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": f"loop-{time.time_ns()}",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 5,
            "queued.min.messages": 200_000,
        }
    )
    failed: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": linger,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1_048_576,
            "delivery.report.only.error": True,
            "log_level": 2,
        }
    )
    partitions = consumer.list_topics(source, timeout=10).topics[source].partitions
    consumer.assign([TopicPartition(source, number, OFFSET_BEGINNING) for number in partitions])
    print("ready", flush=True)
    read: dict[int, int] = {}
    committed = time.monotonic()
    while not leaving and not failed:
        messages = consumer.consume(MOST, WAIT_SECONDS)
        if messages:
            entries = answers(messages, session, name, int(width))
            while len(producer) + len(entries) > 900_000:
                producer.poll(0.01)
            producer.produce_batch(target, entries, on_delivery=lambda error, message: failed.append(str(error)))
            for message in messages:
                read[message.partition()] = message.offset() + 1
        producer.poll(0)
        if read and time.monotonic() > committed + COMMIT_SECONDS:
            producer.flush()
            consumer.commit(offsets=[TopicPartition(source, *place) for place in read.items()], asynchronous=True)
            committed = time.monotonic()
    left = producer.flush(30)
    consumer.close()
    if failed or left:
        print(f"loop: {left or len(failed)} messages were not delivered: {failed[:1]}", file=sys.stderr)
        return 1
    return 0


def answers(messages: Sequence[Message], session: ort.InferenceSession, name: str, width: int) -> list[dict[str, Any]]:
    """What goes out for messages, in order. Raises KafkaException for an error among them."""
    read: list[dict[str, Any]] = []
    matrix = np.empty((len(messages), width), np.float32)
    for row, message in enumerate(messages):
        if message.error() is not None:
            raise KafkaException(message.error())
        content = orjson.loads(message.value())
        read.append(content)
        if "dataPoint" in content:
            matrix[row] = np.fromstring(content["dataPoint"], np.float32, sep=",")
        else:
            matrix[row] = content["x"]
    scores: npt.NDArray[np.float32] = session.run(None, {name: matrix})[0]
    if "dataPoint" in read[0]:
        for content, values in zip(read, scores.tolist(), strict=True):
            content["prediction"] = ",".join(map(str, values)) + ","
        values = [orjson.dumps(content) for content in read]
    else:
        ids = [content["id"] for content in read]
        values = [orjson.dumps({"id": one, "score": s}) for one, s in zip(ids, scores.ravel().tolist(), strict=True)]
    return [{"key": message.key(), "value": value} for message, value in zip(messages, values, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
