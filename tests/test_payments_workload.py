"""The workload `payments`, with a few cards: made once, the same answers by Kafka as in memory, wrong ones are seen."""

from pathlib import Path

import numpy as np
import pytest

from bench import throughput
from bench.results import read
from bench.workloads import payments

pytestmark = pytest.mark.long


def test_payments_are_answered_as_in_memory_and_the_state_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(payments, "SMALL", {**payments.SMALL, "cards": 900})
    workload = payments.Payments(cards=8_000)
    monkeypatch.setattr(payments, "workload", workload)
    monkeypatch.setenv("HEADRACE_POLL_ROWS", "256")
    out = tmp_path / "out.json"
    code = throughput.main(
        f"--workload payments --broker embedded --messages 9000 --limit 60 --home {tmp_path} --json {out}".split()
    )
    assert code == 0, capsys.readouterr()
    (run,) = read(out)["runs"]
    assert (run["valid"], run["answers"], run["lost"], run["doubled"], run["wrong"]) == (True, 9_000, 0, 0, 0)
    assert "state by card: " in (said := capsys.readouterr().out)
    assert "MB a shard" in said
    prepared = workload.prepare(9_000, lambda doing, share: None)
    ids = prepared.ids()
    scores = np.load(prepared.folder / payments.SCORES)[:9_000]
    right = [b'{"event_id":%d,"score":%.6f}' % (id, score) for id, score in zip(ids.tolist(), scores.tolist(), strict=True)]
    assert not workload.check(prepared, right, ordered=True).wrong.any()
    right[7] = b'{"event_id":%d,"score":%.6f}' % (ids[7], scores[7] + 0.01)
    assert workload.check(prepared, right, ordered=True).wrong.nonzero()[0].tolist() == [7]
