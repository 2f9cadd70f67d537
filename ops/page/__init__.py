"""The live page of a job: a process beside it asks its workers and looks at the ends of its topics, while somebody has it open.

`paging` starts and ends it, and tells it the little that it has to know of the pipeline, so that it loads nothing of what a
pipeline is made of.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ops.beside import beside, expect_metrics
from ops.logs import say

if TYPE_CHECKING:
    from streams.pipeline import Pipeline
    from streams.settings import JobSettings

HOST = "127.0.0.1"
"""Nobody else on the network reaches it: it has no password."""


@dataclass(frozen=True)
class About:
    """What the page has to know of a pipeline: names, topics (empty: there is none that it reads), and whether events have
    secrets."""

    pipeline: str
    model: str
    group: str
    events: str
    dead: str
    decisions: str
    drift: str
    secrets: bool

    @classmethod
    def of(cls, pipeline: "Pipeline") -> "About":
        """Of several topics of decisions the first is looked at, since each has all. What an encoder of one's own writes may be
        anything, the event itself too: nobody looks at that."""
        decisions = [sink.topic for sink in pipeline.sinks if sink.encode is None]
        return cls(
            pipeline=pipeline.name,
            model=pipeline.model.name,
            group=pipeline.group,
            events=pipeline.events.topic,
            dead=pipeline.events.dead,
            decisions=decisions[0] if decisions else "",
            drift=pipeline.drift.topic if pipeline.drift else "",
            secrets=bool(pipeline.events.schema.secrets),
        )


@contextmanager
def paging(pipeline: "Pipeline", settings: "JobSettings") -> Iterator[None]:
    """Serves the page on `page_port`, if there is one, while this lasts. It ends when this process does, however that ends.
    Raises PortTakenError, and ValueError for a job without `metrics_port`, whose workers cannot be asked."""
    if not settings.page_port:
        yield
        return
    from ops.workers import as_environment

    command = ["ops.page", str(settings.page_port), json.dumps(asdict(About.of(pipeline)))]
    expect_metrics("page_port", settings)
    with beside(command, "the process of the page ended before it answered", as_environment(settings)):
        say(f"page on http://{HOST}:{settings.page_port}/", out=True)
        yield
