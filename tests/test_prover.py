"""The audit of the prover sees everything that can be wrong, a series of kills leaves no point out and can be gone on with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import faults
from bench.proving.audit import audit, wrong
from bench.proving.job import ALL, COUNT, SUM
from bench.proving.lives import RANDOM, STARTING
from bench.proving.load import KEYS, Load
from bench.proving.seen import latencies, recovery, slow
from ops.faults import AT_ONCE, KILL_AT, POINTS, killed_at

Decision = dict[str, Any]


def answered(sent: int) -> tuple[Load, list[Decision], list[Decision]]:
    """What a job that was never killed makes of so many messages a partition, taken in turns."""
    load, shared = Load("faults", [[0.0] * sent for _ in range(3)]), dict[str, int]()
    expected, decisions = load.expected(), list[Decision]()
    for place, _, n in sorted(load.decided_on(), key=lambda each: each[2]):
        count, total = expected[place]
        every = shared.get(load.shared(n), 0)
        shared[load.shared(n)] = every + 1
        features = {"n": n, COUNT: count, SUM: total or None, ALL: every}
        decisions.append({"decision_id": f"faults/faults-in/{place}", "features": features, "score": 0.5, "decision": "high"})
    dead = [{"partition": int(p), "offset": int(n), "code": "schema"} for p, n in (place.split("/") for place in load.dead())]
    return load, decisions, dead


def changed(decision: Decision, name: str, value: float) -> Decision:
    return decision | {"features": decision["features"] | {name: value}}


def test_what_is_right_has_no_fault() -> None:
    seen = audit(*answered(300))
    assert wrong(seen, "exactly_once") == []
    assert (seen["messages"], seen["decided"], seen["dead"]) == (900, 891, 9)


PLANTED: dict[str, Callable[[list[Decision], list[Decision]], Any]] = {
    "lost": lambda decisions, dead: decisions.pop(123),
    "repeats": lambda decisions, dead: decisions.append(decisions[5]),
    "disordered": lambda decisions, dead: decisions.insert(170, decisions.pop(200)),
    "unknown": lambda decisions, dead: decisions.append(decisions[5] | {"decision_id": "faults/faults-in/1/96"}),
    "state_wrong": lambda decisions, dead: decisions.__setitem__(50, changed(decisions[50], COUNT, 0)),
    "shared_wrong": lambda decisions, dead: decisions.__setitem__(50, changed(decisions[50], ALL, 0)),
    "contradict_own": lambda decisions, dead: decisions.append(changed(decisions[50], SUM, 3)),
    "dead_lost": lambda decisions, dead: dead.pop(),
    "dead_unknown": lambda decisions, dead: dead.append({"partition": 0, "offset": 5, "code": "schema"}),
    "dead_repeats": lambda decisions, dead: dead.append(dead[0]),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_each_fault_is_found(fault: str) -> None:
    load, decisions, dead = answered(300)
    PLANTED[fault](decisions, dead)
    seen = audit(load, decisions, dead)
    assert seen[fault] == 1
    assert any(said.startswith(f"{fault}: 1") for said in wrong(seen, "exactly_once"))


def test_a_message_that_was_set_aside_is_neither_lost_nor_in_what_its_keys_count_and_nothing_else_is_let_off() -> None:
    load, decisions, dead = answered(300)
    taken = next(k for k, one in enumerate(decisions) if one["decision_id"].endswith("in/1/20"))
    without = [*decisions[:taken], *decisions[taken + 1 :]]
    letter = {"partition": 1, "offset": 20, "code": "poison"}
    seen = audit(load, without, dead)
    assert seen["lost"] == 1
    seen = audit(load, without, [*dead, letter])
    assert (seen["set_aside"], seen["lost"], seen["dead_unknown"]) == (1, 0, 0)
    both = audit(load, decisions, [*dead, letter])
    assert (both["decided_too"], wrong(both, "at_least_once"), wrong(both, "exactly_once")) == (1, [], ["decided_too: 1"])
    later = next(k for k, one in enumerate(without) if one["decision_id"] == f"faults/faults-in/1/{20 + KEYS}")
    less = changed(without[later], COUNT, without[later]["features"][COUNT] - 1)
    assert wrong(audit(load, [*without[:later], less, *without[later + 1 :]], [*dead, letter]), "exactly_once") == []
    other = next(k for k, one in enumerate(without) if load.key(1, 20) != load.key(*place(one)) and one["features"][COUNT])
    less = changed(without[other], COUNT, 0)
    assert audit(load, [*without[:other], less, *without[other + 1 :]], [*dead, letter])["state_wrong"] == 1


def place(decision: Decision) -> tuple[int, int]:
    partition, n = decision["decision_id"].rsplit("/", 2)[1:]
    return int(partition), int(n)


def test_at_least_once_may_repeat_and_contradict_where_partitions_are_mixed() -> None:
    load, decisions, dead = answered(300)
    decisions.append(changed(decisions[50], ALL, 0))
    seen = audit(load, decisions, [*dead, dead[0]])
    assert (seen["repeats"], seen["contradict_shared"], seen["contradict_own"], seen["dead_repeats"]) == (1, 1, 0, 1)
    assert wrong(seen, "at_least_once") == []
    assert wrong(seen, "exactly_once") == ["repeats: 1", "dead_repeats: 1"]


def test_each_point_is_killed_at_with_each_number_of_workers() -> None:
    points = [*POINTS, RANDOM, STARTING]
    turns = faults.turns(7, points, [1, 2, 3], 200)
    kills = [(point, turn.workers) for turn in turns for point in turn.points]
    assert len(kills) == 200
    assert sorted(kills[:42]) == sorted((point, workers) for point in points for workers in (1, 2, 3))
    assert turns == faults.turns(7, points, [1, 2, 3], 200)
    assert kills[:42] != kills[42:84]
    assert not any(point in (RANDOM, STARTING) for turn in turns for point in turn.points[:-1])
    assert max(len(turn.points) for turn in turns) == faults.LIVES + 1
    chunks = faults.chunks(turns, 20)
    assert [turn for chunk in chunks for turn in chunk] == turns
    assert all(17 <= sum(len(turn.points) for turn in chunk) <= 23 for chunk in chunks[:-1])


def chunk(hit: list[tuple[str, int]], missed: list[tuple[str, int]] = (), **more: Any) -> dict[str, Any]:  # type: ignore[assignment]
    kills = {"hit": hit, "missed": missed, "refused": [], "start_s": [(1, 2.0), (1, 4.0)], "again_s": [(1, 1.0)]}
    return {"kills": kills, "died": "", **audit(*answered(100)), "seconds": 1} | more


def test_a_point_that_was_never_reached_is_a_fault() -> None:
    settings = {"seed": 0, "kills": 4, "chunk": 2, "points": ["stage.before", "stage.after", RANDOM], "workers": [1]}
    assert len(faults.planned(settings)) == 2
    one = chunk([("stage.before", 1)], [("stage.after", 1)])
    unfinished = faults.judged({"chunks": [one], "settings": settings}, "exactly_once")
    assert unfinished["wrong"] == ["never reached: stage.after"]
    whole = faults.judged({"chunks": [one, chunk([("stage.after", 1)])], "settings": settings}, "exactly_once")
    assert whole["wrong"] == ["kills not made: 2 of 4", "never killed at: random"]
    assert whole["seen"]["messages"] == 600
    assert whole["seen"]["start_s"] == {"1": 3.0}
    assert any("never killed at: random" in line for line in faults.report(whole))


def test_a_series_goes_on_where_its_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def made_up(options: Any, served: Any, home: Path, number: int, plan: Any) -> dict[str, Any]:
        made.append(number)
        if len(made) == 2:
            raise KeyboardInterrupt
        return chunk([(RANDOM, 1), (RANDOM, 1)])

    monkeypatch.setattr(faults, "chunk", made_up)
    said = f"--kills 6 --chunk 2 --points {RANDOM} --workers 1 --broker 127.0.0.1:1 --json"
    command = [*said.split(), str(tmp_path / "f")]
    with pytest.raises(KeyboardInterrupt):
        faults.main(command)
    assert faults.main(command) == 0
    assert made == [0, 1, 1, 2]
    assert len(json.loads((tmp_path / "f").read_text())["chunks"]) == 3
    with pytest.raises(ValueError, match="made with another seed"):
        faults.main([*command, "--seed", "1"])


@pytest.mark.parametrize("points", [POINTS, AT_ONCE])
def test_a_process_kills_itself_at_its_point_and_says_so(points: tuple[str, ...]) -> None:
    code = f"import os; from ops.faults import killed_at; at = killed_at(os.environ, 1)\nfor p in {points}: at(p); print(p)"
    environment = os.environ | {KILL_AT: f"{points[2]}:1:1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert done.stderr == f"killed at {points[2]}\n"


def test_each_life_has_a_point_of_its_own() -> None:
    environment = {KILL_AT: "stage.before:2:0;commit.after:1:1"}
    code = f"from ops.faults import killed_at; killed_at({environment}, 1, 1)('commit.after')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-9, "killed at commit.after\n")
    for worker, life in ((0, 1), (1, 0), (1, 2)):
        killed_at(environment, worker, life)("commit.after")
    with pytest.raises(ValueError, match="expected a point among"):
        killed_at({KILL_AT: "stage.before:2:0;nowhere:1:1"}, 1, 1)


def test_when_latency_is_back_to_normal_after_a_fault() -> None:
    """One message each 10 ms of 20 ms each; an outage from 20 to 30; the backlog is gone at 32."""
    load = Load("x", [[k / 100 for k in range(5_000)], [], []])
    seen = {}
    for place, _, n in load.decided_on():
        due = n / 100
        late = 30 + (due - 20) * 2 / 12 if 20 <= due < 32 else due
        seen[f"x/x-in/{place}"] = max(late, due) + 0.02
    due, took = latencies(load, seen)
    assert (np.diff(due) >= 0).all()
    found = recovery(due, took, 20, 30, 45)
    assert found["normal_p99_ms"] == 20
    assert found["back_to_normal_s"] == 2
    assert found["lag_0_s"] == pytest.approx(1.69, abs=0.05)
    assert slow([found | {"what": "outage"}], 10) == []
    never = recovery(due, np.where(due > 20, 3.0, took), 20, 30, 45)
    assert never["back_to_normal_s"] is None
    assert len(slow([never | {"what": "outage"}], 10)) == 1
    assert recovery(due, np.where(due > 19.5, 3.0, took), 20, 30, 45)["normal_p99_ms"] == 20
    lost = recovery(due, np.where((due > 25) & (due < 26), np.inf, took), 20, 30, 45)
    assert lost["lag_0_s"] == np.inf
