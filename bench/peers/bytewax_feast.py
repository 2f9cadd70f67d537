"""The flights with plain Bytewax item by item, Feast's SDK and ONNX Runtime, in a venv of its own (bench.peers.venvs bytewax).

python -m bench.peers.bytewax_feast BROKERS INPUT OUTPUT MODEL_FOLDER REPO LINGER_MS HOME

Bytewax's own Kafka connector and operators: windows and last values by `stateful_flat_map`, keyed by the origin and by the
plane; what both know of a flight is joined by its id, since two keyed steps in a row would see events out of order. Recovery is
on, with an epoch a second. Stored features come from `get_online_features`, a row at a time.
"""

import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from bench.peers.flights_by_hand import Event, Model, Row, answer, at_origin, at_plane, board, decode
from bench.peers.flights_stored import one_by_one

EPOCH = timedelta(seconds=1)


def build(source: Source[Any], sink: Sink[Any], folder: Path, repo: Path) -> Dataflow:
    """From messages (`key` and `value` bytes) to messages. folder: of the model; repo: Feast's."""
    model, stored = Model(folder), one_by_one(repo)

    def decoded(message: KafkaSourceMessage[bytes, bytes]) -> Event:
        event = decode(message.value)
        event["key"] = message.key
        return event

    def of_origin(state: Any, event: Event) -> tuple[Any, Iterable[Row]]:
        state, known = at_origin(state, event)
        return state, () if known is None else ({**board(event), **known, "key": event["key"]},)

    def of_plane(state: Any, event: Event) -> tuple[Any, Iterable[Row]]:
        state, known = at_plane(state, event)
        return state, () if known is None else ({**known, "flight_id": event["flight_id"]},)

    def decided(joined: tuple[str, tuple[Row, Row]]) -> KafkaSinkMessage[bytes, bytes]:
        origin, plane = joined[1]
        row = {**origin, **plane}
        return KafkaSinkMessage(row["key"], answer({**row, **stored(row)}, model))

    flow = Dataflow("flights")
    events = op.map("decode", op.input("kafka in", flow, source), decoded)
    there = op.filter("at an origin", events, lambda event: event["kind"] != "arrived")
    there = op.key_on("by origin", there, lambda event: event["origin"])
    there = op.stateful_flat_map("origin", there, of_origin)
    planes = op.filter("of a plane", events, of_a_plane)
    planes = op.key_on("by plane", planes, lambda event: event.get("tailnum") or "")
    planes = op.stateful_flat_map("plane", planes, of_plane)
    sides = [
        op.map(f"{name} by flight", side, lambda item: (str(item[1]["flight_id"]), item[1]))
        for name, side in (("origin", there), ("plane", planes))
    ]
    op.output("kafka out", op.map("decide", op.join("flight", *sides), decided), sink)
    return flow


def of_a_plane(event: Event) -> bool:
    """Whether the plane's step needs an event: scheduled ones are answered, arrivals of known planes remembered."""
    return event["kind"] == "scheduled" or (event["kind"] == "arrived" and event.get("tailnum") is not None)


def main() -> None:
    """The command line."""
    brokers, topic, target, folder, repo, linger, home = sys.argv[1:]
    source = KafkaSource(
        [brokers],
        [topic],
        add_config={"fetch.wait.max.ms": "5", "fetch.queue.backoff.ms": "50", "queued.min.messages": "200000"},
    )
    sink = KafkaSink([brokers], target, add_config={"acks": "all", "enable.idempotence": "true", "linger.ms": linger})
    flow = build(source, sink, Path(folder), Path(repo))
    store = Path(home) / "recovery"
    store.mkdir(parents=True, exist_ok=True)
    if not any(store.iterdir()):
        init_db_dir(store, 1)
    print("ready", flush=True)
    cli_main(flow, epoch_interval=EPOCH, recovery_config=RecoveryConfig(str(store)))


if __name__ == "__main__":
    main()
