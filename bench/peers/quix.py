"""Quix Streams with ONNX Runtime, item by item, as its users write it, in a venv of its own (python -m bench.peers.venvs quix).

python bench/peers/quix.py BROKERS INPUT OUTPUT MODEL.onnx WIDTH LINGER_MS HOME

At least once, commits each second. It knows Crayfish's messages (`dataPoint` as one string, echoed with `prediction`) and flat
ones (`{"id":n,"x":[...]}`, answered by `{"id":n,"score":s}`).
"""

import sys
import time

import numpy as np
import onnxruntime as ort
import orjson
from quixstreams import Application


def main() -> None:
    """The command line."""
    brokers, source, target, model, width, linger, home = sys.argv[1:]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, (1, int(width))

    def score(value: bytes) -> bytes:
        content = orjson.loads(value)
        text = content.get("dataPoint")
        if text is not None:
            x = np.fromstring(text, np.float32, sep=",").reshape(shape)
            content["prediction"] = ",".join(map(str, session.run(None, {name: x})[0][0].tolist())) + ","
            return orjson.dumps(content)
        x = np.array(content["x"], np.float32).reshape(shape)
        return orjson.dumps({"id": content["id"], "score": float(session.run(None, {name: x})[0].ravel()[0])})

    app = Application(
        broker_address=brokers,
        consumer_group=f"quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        processing_guarantee="at-least-once",
        commit_interval=1.0,
        state_dir=home,
        auto_create_topics=False,
        use_changelog_topics=False,
        consumer_extra_config={"fetch.wait.max.ms": 5, "queued.min.messages": 200_000},
        producer_extra_config={"linger.ms": int(linger), "acks": "all", "enable.idempotence": True},
        loglevel="WARNING",
    )
    incoming = app.topic(source, value_deserializer="bytes", key_deserializer="bytes")
    outgoing = app.topic(target, value_serializer="bytes", key_serializer="bytes")
    app.dataframe(incoming).apply(score).to_topic(outgoing)
    print("ready", flush=True)
    app.run()


if __name__ == "__main__":
    main()
