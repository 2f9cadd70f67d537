"""What the page shows of messages: the fields that are named here, and nothing else that is in them.

No event's body, no key, no feature is ever shown; the reason of a dead letter may quote the value that was wrong, as the letter
does, where no field is secret. Of a topic with secret fields an event's own id is not shown either.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from ops.page.tails import Seen

SHOWN, WINDOWS = 20, 60
LETTERS, ITEMS = 400, 12
"""The longest text, and the most items of a list."""
Row = dict[str, Any]


def read(seen: Seen) -> Mapping[str, Any]:
    """A message's object; an empty one of what is none: others may write to the topic, too."""
    try:
        said = orjson.loads(seen.value)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def decision(seen: Seen, secrets: bool) -> Row | None:
    """A row of the decisions; None for what is none."""
    said = read(seen)
    if not isinstance(said.get("decision_id"), str):
        return None
    row = {name: text(said.get(name)) for name in ("decision", "event_time", "decided_at")}
    return {
        "decision_id": text(said["decision_id"]),
        **row,
        "event_id": None if secrets else text(said.get("event_id")),
        "score": number(said.get("score")),
        "model_version": number(said.get("model_version")),
        "reasons": texts(said.get("reasons")),
        "flags": texts(said.get("flags")),
    }


def letter(seen: Seen, topic: str) -> Row | None:
    """A row of the dead letters; None for what is none, or is about another topic. at: when it was written, in ms."""
    said = read(seen)
    if said.get("topic") != topic or not isinstance(said.get("code"), str):
        return None
    row = {name: text(said.get(name)) for name in ("code", "reason")}
    return {**row, "partition": number(said.get("partition")), "offset": number(said.get("offset")), "at": seen.at}


class Newest:
    """The newest rows of a topic, of whatever partition. Times are the messages', so that partitions stand side by side."""

    def __init__(self, row: Callable[[Seen], Row | None], most: int = SHOWN) -> None:
        self._row, self._most = row, most
        self._rows: list[tuple[tuple[int, int, int], Row]] = []

    def take(self, seen: Iterable[Seen]) -> None:
        """What is new. Only what is shown is read."""
        for one in sorted(seen, key=lambda one: one[:3])[-self._most :]:
            if (row := self._row(one)) is not None:
                self._rows.append((one[:3], row))
        self._rows = sorted(self._rows, key=lambda each: each[0])[-self._most :]

    @property
    def rows(self) -> list[Row]:
        """The newest first."""
        return [row for _, row in reversed(self._rows)]


class Windows:
    """Drift's reports: of the last windows, by feature and statistic. version: another one whenever there is more."""

    def __init__(self, pipeline: str, most: int = WINDOWS) -> None:
        self._pipeline, self._most = pipeline, most
        self._reports: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
        self.version = 0

    def take(self, seen: Iterable[Seen]) -> None:
        """What is new. A report that came twice counts once."""
        for one in seen:
            said = read(one)
            end, statistic = said.get("window_end"), said.get("statistic")
            if said.get("pipeline") == self._pipeline and isinstance(end, str) and isinstance(statistic, str):
                feature = said["feature"] if isinstance(said.get("feature"), str) else ""
                self._reports.setdefault(text(end) or "", {})[feature, statistic] = said
                self.version += 1
        for end in sorted(self._reports)[: -self._most]:
            del self._reports[end]

    def shown(self) -> Row:
        """The ends of the windows, the oldest first, and of each feature and statistic its `shares`: its value at each of them
        as a share of what is allowed (None: not known), those of them that alarmed, and the last value. Features that are
        nearest to an alarm come first. Windows that had too few rows to be judged are listed by themselves."""
        ends = sorted(self._reports)
        names = dict.fromkeys(name for end in reversed(ends) for name in self._reports[end] if name[0])
        features: dict[str, list[Row]] = {}
        for feature, statistic in names:
            reports = [self._reports[end].get((feature, statistic), {}) for end in ends]
            last = next(report for report in reversed(reports) if report)
            features.setdefault(feature, []).append(
                {
                    "statistic": text(statistic),
                    "shares": [_share(report) for report in reports],
                    "alarms": [k for k, report in enumerate(reports) if report.get("alarmed") is True],
                    "value": number(last.get("value")),
                    "threshold": number(last.get("threshold")),
                }
            )
        rows: list[Row] = [{"feature": text(feature), "statistics": said} for feature, said in features.items()]
        rows.sort(key=lambda row: -max(_last(each["shares"]) for each in row["statistics"]))
        unjudged = [
            {"window_end": end, "rows": number(said.get("value")), "needed": number(said.get("threshold"))}
            for end in ends
            if (said := self._reports[end].get(("", "rows"))) is not None
        ]
        return {"windows": ends, "features": rows, "unjudged": unjudged}


def _share(report: Mapping[str, Any]) -> float | None:
    value, threshold = number(report.get("value")), number(report.get("threshold"))
    try:
        share = None if value is None or not threshold or threshold < 0 else value / threshold
    except OverflowError:
        return None
    return None if share is None or not math.isfinite(share) else round(share, 3)


def _last(shares: list[float | None]) -> float:
    """That of the last window that was judged."""
    return next((share for share in reversed(shares) if share is not None), 0.0)


def text(value: Any) -> str | None:
    """A text as it is shown: not too long. A number is one, too; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    said = str(value)
    return said if len(said) <= LETTERS else f"{said[:LETTERS]}…"


def texts(value: Any) -> list[str]:
    """A list of texts as it is shown."""
    items = value[:ITEMS] if isinstance(value, list) else []
    return [said for item in items if (said := text(item)) is not None]


def number(value: Any) -> float | None:
    """A number that JSON has; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None
