"""The flights with Quix Streams and its own state store, item by item, in a venv of its own (bench.peers.venvs quix-flights).

python -m bench.peers.quix_flights BROKERS INPUT OUTPUT MODEL_FOLDER REPO LINGER_MS HOME

What is known of a plane is state under the topic's key; then events are grouped by origin (through a topic of Quix's own where
there is more than one partition), and windows and weather are state under that. State is in RocksDB with changelog topics, at
least once, a commit each second. Stored features are read from Feast once, at the start, and then from memory.
"""

import sys
import time
from pathlib import Path
from typing import Any

from quixstreams import Application, State
from quixstreams.dataframe import StreamingDataFrame

from bench.peers.flights_by_hand import Event, Model, Row, answer, at_origin, at_plane, board, decode
from bench.peers.flights_stored import all_at_once


def build(events: StreamingDataFrame, folder: Path, repo: Path) -> StreamingDataFrame:
    """From values (bytes) to answers (bytes). folder: of the model; repo: Feast's."""
    model, stored = Model(folder), all_at_once(repo)

    def of_plane(event: Event, state: State) -> Event | None:
        if event.get("tailnum") is None:
            if event["kind"] == "arrived":
                return None
            return {**event, **(at_plane(None, event)[1] or {})}
        if event["kind"] in ("weather", "departed"):
            return event
        before = state.get("plane")
        after, known = at_plane(before, event)
        if known is None:
            state.set("plane", after)
            return None
        return {**event, **known}

    def of_origin(event: Event, state: State) -> Row | None:
        after, known = at_origin(state.get("origin"), event)
        if known is None:
            state.set("origin", after)
            return None
        return {**event, **board(event), **known}

    def decided(row: Row) -> bytes:
        return answer({**row, **stored(row)}, model)

    events = events.apply(decode).apply(of_plane, stateful=True).filter(present).group_by("origin")
    return events.apply(of_origin, stateful=True).filter(present).apply(decided)


def present(value: Any) -> bool:
    """Whether a step gave anything."""
    return value is not None


def main() -> None:
    """The command line."""
    brokers, source, target, folder, repo, linger, home = sys.argv[1:]
    app = Application(
        broker_address=brokers,
        consumer_group=f"quix-flights-{time.time_ns()}",
        auto_offset_reset="earliest",
        processing_guarantee="at-least-once",
        commit_interval=1.0,
        state_dir=Path(home) / "state",
        consumer_extra_config={"fetch.wait.max.ms": 5, "fetch.queue.backoff.ms": 50, "queued.min.messages": 200_000},
        producer_extra_config={"linger.ms": int(linger), "acks": "all", "enable.idempotence": True},
        loglevel="WARNING",
    )
    incoming = app.topic(source, value_deserializer="bytes", key_deserializer="bytes")
    outgoing = app.topic(target, value_serializer="bytes")
    build(app.dataframe(incoming), Path(folder), Path(repo)).to_topic(outgoing)
    print("ready", flush=True)
    app.run()


if __name__ == "__main__":
    main()
