"""The flights' features, model and decisions one event at a time in plain Python, as the users of another system write them.

Windows over an origin, last values of an origin and of a plane, one row for the model, one decision: the same answers as
streams/flights.py gives, from an event's own dict and the state of its entities. State is plain lists, dicts and numbers, so
that any system can keep it. Imports nothing of headrace: it runs in the venvs of the peers.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import onnxruntime as ort
import orjson

Event = dict[str, Any]
State = dict[str, Any]
Row = dict[str, Any]

NEW_YORK = ZoneInfo("America/New_York")
TILE = 60.0
TILES = 121
PLANE_WITHIN = 12 * 3600.0
WEATHER_WITHIN = 3 * 3600.0
WEATHER = ("temp", "wind_speed", "precip", "visib", "pressure")
LATE, WATCH, STORM = float(np.float32(0.5)), float(np.float32(0.3)), 60.0
FIELDS = ("flight_id", "carrier", "origin", "dest", "distance", "tailnum")


def decode(value: bytes) -> Event:
    """An event of the topic, its time `at` as seconds since 1970."""
    event: Event = orjson.loads(value)
    event["at"] = datetime.fromisoformat(event["at"]).timestamp()
    return event


def at_origin(state: State | None, event: Event) -> tuple[State, Row | None]:
    """The origin's state after an event of kind weather, departed or scheduled, and for a scheduled one what it knows.

    state: newest, the newest tile of a departure; departures, [tile, delay] of the last two hours; weather, name -> [time,
    value]. Departures are kept and read by tiles of a minute, as headrace's windows are (kernels/windows/naive.py).
    """
    if state is None:
        state = {"newest": None, "departures": [], "weather": {}}
    kind, at = event["kind"], event["at"]
    if kind == "scheduled":
        return state, _window(state, at) | _last(state["weather"], at)
    if kind == "departed":
        now, newest = int(at // TILE), state["newest"]
        if newest is None or now > newest:
            state["newest"] = newest = now
            first = now - TILES
            departures = state["departures"]
            while departures and departures[0][0] <= first:
                departures.pop(0)
        if now > newest - TILES:
            state["departures"].append([now, event["dep_delay"]])
    elif kind == "weather":
        weather = state["weather"]
        for name in WEATHER:
            value = event.get(name)
            if value is not None and (name not in weather or at >= weather[name][0]):
                weather[name] = [at, value]
    return state, None


def _window(state: State, at: float) -> Row:
    now, newest = int(at // TILE), state["newest"]
    first = (now if newest is None or newest < now else newest) - TILES
    delays = [delay for tile, delay in state["departures"] if first < tile <= now]
    count = len(delays)
    return {
        "dep_delay_mean_2h_by_origin": sum(delays) / count if count else math.nan,
        "dep_delay_max_2h_by_origin": max(delays) if count else math.nan,
        "dep_delay_count_2h_by_origin": count,
    }


def _last(weather: Mapping[str, list[float]], at: float) -> Row:
    row = {}
    for name in WEATHER:
        seen_at, value = weather.get(name, (math.inf, math.nan))
        row[f"{name}_last_by_origin"] = value if 0 <= at - seen_at <= WEATHER_WITHIN else math.nan
    return row


def at_plane(state: list[float] | None, event: Event) -> tuple[list[float] | None, Row | None]:
    """The plane's state [time, delay] after an event of kind arrived or scheduled, and for a scheduled one what it knows."""
    at = event["at"]
    if event["kind"] == "scheduled":
        known = state is not None and 0 <= at - state[0] <= PLANE_WITHIN
        return state, {"arr_delay_last_by_tailnum": state[1] if known and state is not None else math.nan}
    if event["kind"] == "arrived" and (state is None or at >= state[0]):
        state = [at, event["arr_delay"]]
    return state, None


def board(event: Event) -> Row:
    """What the scheduled event itself says: its fields, and the time on New York's clock."""
    local = datetime.fromtimestamp(event["at"], NEW_YORK)
    row = {name: event.get(name) for name in FIELDS}
    row["minute_of_day"] = local.hour * 60 + local.minute
    row["weekday"] = local.weekday()
    return row


class Model:
    """model.onnx with one thread, and the row that model.json says it takes."""

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        inputs = json.loads((folder / "model.json").read_text())["inputs"]
        self._columns = [
            (each["name"], {value: code for code, value in enumerate(each["vocabulary"], 1)} if "vocabulary" in each else None)
            for each in inputs
        ]

    def score(self, row: Row) -> float:
        """The score of one row of features by name; None is missing, a category that is not known has code 0."""
        values = [row[name] if codes is None else codes.get(row[name], 0) for name, codes in self._columns]
        scores = self._session.run(None, {self._input: np.array([values], np.float32)})[0]
        return float(scores.item())


def decide(row: Row, score: float) -> str:
    """Storm first, then the bands of the score."""
    if row["wind_speed_last_by_origin"] >= STORM:
        return "watch"
    if score >= LATE:
        return "late"
    return "watch" if score >= WATCH else "on_time"


def answer(row: Row, model: Model) -> bytes:
    """The decision on a row with all its features, as it is sent."""
    score = model.score(row)
    return orjson.dumps({"event_id": row["flight_id"], "decision": decide(row, score), "score": score})
