"""Traces of a share of the batches, by OpenTelemetry: what each step took, which events it was about, and which model decided.

The spans of a batch are made when it is handed over, of the times that its steps have written down. OpenTelemetry is imported
only by a job that traces.
"""

import random
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from streams.decide import Work
from streams.meters import Step
from streams.polling import Polled

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

MOST_POLLS = 4096
"""Whose decoding is remembered until their rows are decided."""
CLOSE_SECONDS = 5.0


class Tracing:
    """Chooses batches and makes their spans; close it. One thread uses it; OpenTelemetry sends on another."""

    def __init__(
        self,
        pipeline: str,
        topic: str,
        worker: int,
        share: float,
        clock_ns: Callable[[], int],
        exporter: "SpanExporter | None" = None,
    ) -> None:
        """share: of the batches, chosen at random. exporter: where spans go; if not given, by OTLP over HTTP to where
        OpenTelemetry's own variables say. Raises ValueError where it is not installed."""
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import set_span_in_context

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter()
        except ImportError as error:
            raise ValueError(
                f"setting trace_share {share:g}: expected OpenTelemetry and its exporter, got {error}: "
                "pip install 'headrace[trace]', or as headrace was installed, with [trace]"
            ) from None
        called = Resource.create({SERVICE_NAME: f"headrace-{pipeline}"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=called)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer, self._inside = self._provider.get_tracer("headrace"), set_span_in_context
        self._always = {"pipeline": pipeline, "topic": topic, "worker": worker}
        self._share, self._clock_ns = share, clock_ns
        self._decoding = dict[int, list[Step]]()

    def decoding(self, polls: Sequence[tuple[str, Polled]]) -> list[Step]:
        """Where the decoding of polls is to be written down."""
        steps = list[Step]()
        self._decoding.update({polled.polled_at: steps for _, polled in polls if polled.rows})
        while len(self._decoding) > MOST_POLLS:
            del self._decoding[next(iter(self._decoding))]
        return steps

    def chosen(self) -> list[Step] | None:
        """Where the steps of the batch that is at hand are to be written down, if it is one to be traced."""
        return [] if random.random() < self._share else None

    def handed_over(self, work: Work, steps: Sequence[Step], since: float) -> None:
        """Makes the spans of a batch whose steps so far, from `batch` on, are given, and whose hand-over, since then
        (perf_counter), has just ended.

        The first `features` of a batch last from its decoding to its `batch`: streaming features are read and updated for all
        of a worker's batches together, on other workers too.
        """
        ended, now = perf_counter(), self._clock_ns()
        polls = np.unique(work.polled_at).tolist()
        decoded = dict.fromkeys(step for poll in polls for step in self._decoding.get(poll, ()))
        streaming = [("features", until, steps[0][1]) for _, _, until in decoded]
        whole = [*decoded, *streaming, *steps, ("sink", since, ended)]

        def at(moment: float) -> int:
            """In ns of the job's clock."""
            return now - round(1e9 * (ended - moment))

        begins = min(polls[0], *(at(began) for _, began, _ in whole))
        root = self._tracer.start_span("batch", attributes=self._attributes(work), start_time=begins)
        inside = self._inside(root)
        for name, began, until in whole:
            self._tracer.start_span(name, inside, start_time=at(began)).end(at(until))
        root.end(now)

    def _attributes(self, work: Work) -> dict[str, Any]:
        partition, offset = (work.batch.column(name).to_numpy() for name in ("_partition", "_offset"))
        partitions = np.unique(partition).tolist()
        offsets = [offset[partition == each] for each in partitions]
        told = {
            **self._always,
            **work.ids(0),
            "rows": len(offset),
            "partitions": partitions,
            "first_offsets": [int(each.min()) for each in offsets],
            "last_offsets": [int(each.max()) for each in offsets],
        }
        return {f"headrace.{name}": value for name, value in told.items() if value is not None}

    def close(self) -> None:
        """Sends what is left, for CLOSE_SECONDS at most: nobody waits for a collector that does not answer."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
