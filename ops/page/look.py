"""One look at a job: its workers' metrics, the ends of its topics, and what the page shows of them."""

import http.client
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

from confluent_kafka import KafkaException

from ops.beside import DIRECTLY
from ops.page import About
from ops.page.figures import Figures, Key, parsed
from ops.page.shown import Newest, Windows, decision, letter
from ops.page.tails import Tails
from ops.server import at, own
from streams.settings import JobSettings

STAGES = ("event", "features", "batch", "model", "decision", "sink", "drift")
"""Those of streams/meters.py, which would load much of what a job is made of."""
NAMES = tuple(
    f"headrace_{name}"
    for name in (
        *("rows_total", "seconds_total", "hop_seconds_bucket", "batch_rows_bucket", "batch_rows_count", "batch_rows_sum"),
        *("lag_messages", "rebuild_left", "push_waiting", "entities", "early_releases_total", "restarts"),
        *("decisions_total", "flags_total", "dead_letters_total"),
        *("model_version", "model_engine", "model_resting", "model_swaps_total", "model_refused_total"),
        "model_failed_rows_total",
    )
)
"""Of a worker's metrics those that are shown: it is not to spend its time on others, most of which are drift's."""
QUERY = urlencode([("name[]", name) for name in NAMES])
ASK_SECONDS = 1.0
MOST_BYTES = 16 * 1024 * 1024
ENDS, REPORTS, NEW_REPORTS = 40, 6000, 2000
"""Messages of a look: the last of all partitions, all of drift's reports that are shown, and those that come later."""
KINDS = 20
SHARES = {"p50": 0.5, "p99": 0.99}


def asked(host: str, port: int) -> str | None:
    """The metrics of a worker that are shown; None where it does not answer in time."""
    try:
        with DIRECTLY.open(f"http://{at(host, port)}/metrics?{QUERY}", timeout=ASK_SECONDS) as answer:
            return bytes(answer.read(MOST_BYTES)).decode()
    except (OSError, ValueError, http.client.HTTPException):
        return None


class Looker:
    """Looks at a job whenever it is called. made_at: when a version of the model was made, None where that is not known."""

    def __init__(
        self,
        about: About,
        settings: JobSettings,
        made_at: Callable[[int], str | None] = lambda version: None,
        ask: Callable[[str, int], str | None] = asked,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._about, self._settings, self._made_at = about, settings, made_at
        self._ask, self._clock = ask, clock
        self._pool = ThreadPoolExecutor(min(16, settings.workers), "ask")
        self._figures = Figures()
        self._decisions = Newest(lambda seen: decision(seen, about.secrets))
        self._letters = Newest(lambda seen: letter(seen, about.events))
        self._windows, self._drift, self._drawn = Windows(about.pipeline), dict[str, Any](), -1
        self._tails: Tails | None = None

    def __call__(self) -> dict[str, Any]:
        """What the page shows, as JSON has it."""
        about, figures = self._about, self._figures
        read = self._read_workers()
        figures.take(self._clock(), read)
        trouble = self._look_at_topics()
        if self._drawn != self._windows.version:
            self._drift, self._drawn = self._windows.shown(), self._windows.version
        return {
            "pipeline": about.pipeline,
            "topics": {"events": about.events, "dead": about.dead, "decisions": about.decisions, "drift": about.drift},
            "missing": self._tails.missing if self._tails and not trouble else [],
            "secrets": about.secrets,
            "workers": [{"worker": number, "answers": number in read} for number in range(self._settings.workers)],
            "broker": {"answers": not trouble, "trouble": trouble},
            "seconds": rounded(figures.seconds),
            "stages": stages(figures),
            "hops": {hop: quantiles(figures, "headrace_hop_seconds", hop=hop) for hop in ("broker", "flow")},
            "batch": {"per_s": rounded(figures.rate("headrace_batch_rows_count"))} | quantiles(figures, "headrace_batch_rows"),
            "waits": {
                "lag": figures.total("headrace_lag_messages"),
                "rebuild": figures.total("headrace_rebuild_left"),
                "push": figures.total("headrace_push_waiting"),
                "entities": figures.total("headrace_entities"),
                "early": figures.total("headrace_early_releases_total"),
            },
            "model": self._model(),
            "decisions": {
                "kinds": kinds(figures, "headrace_decisions_total", "decision"),
                "flags": kinds(figures, "headrace_flags_total", "flag"),
                "rows": self._decisions.rows,
            },
            "dead": {"kinds": kinds(figures, "headrace_dead_letters_total", "code"), "rows": self._letters.rows},
            "restarts": figures.most("headrace_restarts"),
            "drift_version": self._windows.version + 1,
            "drift": self._drift,
        }

    def close(self) -> None:
        """Lets go of the broker."""
        self._pool.shutdown()
        if self._tails is not None:
            self._tails.close()

    def _read_workers(self) -> dict[int, dict[Key, float]]:
        """The metrics of those workers that answer. Who answers something else is none of them."""
        found: dict[int, dict[Key, float]] = {}
        host, numbers = own(self._settings.metrics_host), range(self._settings.workers)
        said_by = self._pool.map(lambda number: self._ask(host, self._settings.metrics_port + number), numbers)
        for number, said in zip(numbers, said_by, strict=True):
            if said is not None:
                try:
                    found[number] = parsed(said)
                except (ValueError, LookupError):
                    continue
        return found

    def _look_at_topics(self) -> str:
        """Takes what has come; says what is wrong, if anything is. ValueError: a setting cannot be."""
        about = self._about
        most = {about.decisions: ENDS, about.dead: ENDS, about.drift: NEW_REPORTS}
        try:
            if self._tails is None:
                most.pop("", None)
                self._tails = Tails(
                    self._settings.brokers, self._settings.client, about.group, most, [about.events], {about.drift: REPORTS}
                )
            new = self._tails.look()
        except KafkaException as error:
            return str(error.args[0].str())
        except ValueError as error:
            return str(error)
        self._decisions.take(new.get(about.decisions, ()))
        self._letters.take(new.get(about.dead, ()))
        self._windows.take(new.get(about.drift, ()))
        return ""

    def _model(self) -> dict[str, Any]:
        version = self._figures.most("headrace_model_version")
        engines = self._figures.values("headrace_model_engine", "engine")
        return {
            "name": self._about.model,
            "version": None if version is None else int(version),
            "made_at": self._made_at(int(version)) if version else None,
            "engine": ", ".join(engines) or None,
            "resting": bool(self._figures.most("headrace_model_resting")),
            "swaps": self._figures.most("headrace_model_swaps_total"),
            "refused": self._figures.most("headrace_model_refused_total"),
            "failed_per_s": rounded(self._figures.rate("headrace_model_failed_rows_total")),
        }


def stages(figures: Figures) -> list[dict[str, Any]]:
    """The seven: rows a second (drift counts none), the share of a worker's time that each takes, and what a row costs."""
    found = []
    for name in STAGES:
        rows = figures.rate("headrace_rows_total", stage=name)
        if name == "batch":
            rows = figures.rate("headrace_batch_rows_sum")
        if name == "drift":
            rows = None
        seconds = figures.rate("headrace_seconds_total", stage=name)
        busy = seconds / figures.busiest if seconds is not None and figures.busiest else None
        cost = seconds / rows * 1e6 if seconds is not None and rows else None
        found.append({"name": name, "rows_per_s": rounded(rows), "busy": rounded(busy), "us_per_row": rounded(cost)})
    return found


def quantiles(figures: Figures, name: str, **labels: str) -> dict[str, float | None]:
    """The middle and the tail of a histogram."""
    return {called: rounded(figures.quantile(name, share, **labels)) for called, share in SHARES.items()}


def kinds(figures: Figures, name: str, label: str) -> list[dict[str, Any]]:
    """How often each value of a label came: in a second, and since the workers started; the most frequent ones, that did."""
    return [
        {"name": said, "per_s": rounded(figures.rate(name, **{label: said})), "total": total}
        for said in figures.values(name, label)[:KINDS]
        if (total := figures.total(name, **{label: said}))
    ]


def rounded(value: float | None) -> float | None:
    """With four digits: nobody reads more."""
    return None if value is None else float(f"{value:.4g}")
