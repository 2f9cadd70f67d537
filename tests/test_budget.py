"""Rounds become as large as fits the budget, whatever a batch costs and whatever happened before; late is said before it is."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.budget import ENOUGH, FEWEST_ROWS, FIRST_ROWS, FORGET_SECONDS, MOST_ROWS, PROBE_SECONDS, Budget, Lately, Pace
from streams.polling import Gate

BUDGET_MS = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """Works off messages that come at a rate, by a clock of its own. cost: the seconds of a round of so many rows."""

    def __init__(self, rate: float, cost: Callable[[int], float]) -> None:
        self.clock, self.rate, self.cost = Clock(), rate, cost
        self.pace = Pace(Budget(BUDGET_MS), self.clock)
        self.began, self.done, self.limited = self.clock.now, 0, False
        self.rounds: list[tuple[float, int, float]] = []

    @property
    def waiting(self) -> int:
        return int((self.clock.now - self.began) * self.rate) - self.done

    def works(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            limit = self.pace.rows(self.limited)
            rows = min(self.waiting, limit, 4096)
            self.limited = rows == limit
            if not rows:
                self.clock.now += 1e-3
                continue
            took = self.cost(rows)
            polled_at = round(self.clock.now * 1e9)
            self.clock.now += took
            now = round(self.clock.now * 1e9)
            self.pace.took(rows, rows, polled_at, polled_at, now - 10**5, now)
            self.done += rows
            self.rounds.append((self.clock.now, rows, took))


def test_a_new_model_is_measured_anew_also_where_nobody_asks_for_rounds() -> None:
    """As in event order: what the model before took makes no row late."""
    clock = Clock()
    pace = Pace(Budget(BUDGET_MS, "shed"), clock)
    now = round(clock.now * 1e9)
    for _ in range(2 * ENOUGH):
        pace.took(64, 64, now - 10**9, now - 10**9, now, now)
    polled = np.full(64, now)
    assert not pace.late("score", polled, now).any(), "scored now and then, to see"
    assert pace.late("score", polled, now).all()
    pace.forget()
    assert not pace.late("score", polled, now).any()


@pytest.mark.parametrize("fixed_ms", [0.1, 2.0, 4.0, 5.0, 6.0])
def test_a_backlog_is_worked_off_in_time_whatever_a_batch_costs_by_itself(fixed_ms: float) -> None:
    worker = Worker(1e9, lambda rows: fixed_ms / 1e3 + rows * 10e-6)
    worker.works(5)
    settled = [(rows, took) for at, rows, took in worker.rounds if at > 101]
    ideal = min(4096.0, (0.7 * BUDGET_MS - fixed_ms) / 1e3 / 10e-6)
    assert all(took <= BUDGET_MS / 1e3 for _, took in settled)
    assert np.median([rows for rows, _ in settled]) > max(FEWEST_ROWS, 0.6 * ideal)


def test_what_came_while_the_machine_stood_still_is_not_one_late_round_each_time() -> None:
    """Half a load, whose rounds are never full."""
    worker = Worker(5000, lambda rows: 0.003 + rows * 100e-6)
    worker.works(2)
    assert worker.rounds[-1][1] < 0.5 * worker.pace.rows(False)
    late = []
    for _ in range(3):
        before = len(worker.rounds)
        worker.clock.now += 0.03
        worker.works(1)
        late.append(sum(took > BUDGET_MS / 1e3 for _, _, took in worker.rounds[before:]))
        assert worker.waiting < 60
    assert late[0] > 0
    assert late[1:] == [0, 0], "it has been seen what so many rows take"


def test_one_partition_with_a_backlog_among_others_gets_over_a_slow_moment() -> None:
    """Its rounds are not as large as they might be, since the others might have something, too."""
    clock = Clock()
    pace = Pace(Budget(BUDGET_MS), clock)
    gate = Gate(1, rows=pace.rows)
    gate.partitions, last = 4, 0

    def a_round(took: float) -> int:
        nonlocal last
        opened = [gate.opens(last)]
        gate.share()
        opened.append(gate.opens(last))
        rows = gate.share()
        gate.took(rows)
        for _ in range(2):
            opened.append(gate.opens(last))
            gate.share()
        assert len(set(opened)) == 1
        last, polled_at = opened[0], round(clock.now * 1e9)
        clock.now += took
        pace.took(rows, rows, polled_at, polled_at, polled_at, round(clock.now * 1e9))
        return rows

    for _ in range(6):
        a_round(0.02)
    assert a_round(0.003) <= FEWEST_ROWS
    for _ in range(20):
        a_round(0.003)
    assert a_round(0.003) > FIRST_ROWS


@pytest.mark.parametrize("first_rows", [1, 2, 300])
def test_a_slow_moment_is_got_over(first_rows: int) -> None:
    """The first round, and a second and a half in the midst of the run; before and after that 5,000 a second are no trouble."""
    slow = [True]

    def cost(rows: int) -> float:
        return (0.030 if slow[0] else 0.004) + rows * 10e-6

    worker = Worker(5000, cost)
    worker.began = worker.clock.now - first_rows / worker.rate
    worker.works(0.001)
    slow[0] = False
    worker.works(10)
    assert worker.waiting < 300
    slow[0] = True
    worker.works(1.5)
    slow[0] = False
    worker.works(15)
    assert worker.waiting < 300
    last = [took for at, _, took in worker.rounds if at > worker.clock.now - 3]
    assert max(last) <= BUDGET_MS / 1e3


def test_where_no_batch_keeps_the_budget_as_much_is_decided_as_can_be() -> None:
    worker = Worker(1e9, lambda rows: 0.020 + rows * 1e-6)
    worker.works(30)
    assert worker.done > 0.8 * 30 * 4096 / 0.0241


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 0.1)), max_size=300),
    st.floats(0.05, 6.0),
)
def test_whatever_was_seen_it_comes_back_within_seconds(seen: list[tuple[int, float]], fixed_ms: float) -> None:
    worker = Worker(1e9, lambda rows: fixed_ms / 1e3 + rows * 10e-6)
    for rows, took in seen:
        now = round(worker.clock.now * 1e9)
        worker.pace.took(rows, rows, now - round(took * 1e9), now, now, now)
        assert FEWEST_ROWS <= worker.pace.rows(True) <= MOST_ROWS
    worker.works(FORGET_SECONDS + 5)
    last = [(rows, took) for at, rows, took in worker.rounds if at > worker.clock.now - 3]
    assert all(took <= BUDGET_MS / 1e3 for _, took in last)
    assert np.median([rows for rows, _ in last]) >= FEWEST_ROWS


def test_a_new_model_is_learned_anew() -> None:
    worker = Worker(1e9, lambda rows: rows * 1e-6)
    worker.works(2)
    assert worker.pace.rows(False) > 4000
    worker.pace.forget()
    assert worker.pace.rows(False) == FIRST_ROWS


def test_what_was_seen_often_and_lately_counts_by_size() -> None:
    clock = Clock()
    lately = Lately(clock)
    assert lately.of(1000) == 0.0
    for k in range(ENOUGH):
        lately.note(100, 0.010)
        if k:
            lately.note(1000, 0.020)
    assert lately.of(100) == lately.of(64) == lately.of(5000) == 0.010, "seven times is not enough"
    assert lately.of(63) == 0.0, "fewer than anybody has seen"
    lately.note(1000, 9.0)
    assert lately.of(1000) == 0.020, "once in twenty it takes longer"
    clock.now += FORGET_SECONDS + 1
    assert lately.of(1000) == lately.of(100) == 0.0
    lately.note(1000, 0.5)
    assert lately.of(1000) == 0.0, "what is forgotten is not counted again"


def test_late_is_said_before_it_is() -> None:
    pace, ms = Pace(Budget(BUDGET_MS), Clock()), 10**6
    now = 10**15
    polled = now - np.array([1, 7, 8, 9, 10]) * ms - ms // 10
    assert pace.late("decide", polled, now).tolist() == [False, False, False, False, True], "nothing is known"
    for _ in range(ENOUGH):
        pace.took(5, 5, now - 3 * ms, now - 2 * ms, now - ms, now)
    assert pace.late("score", polled, now).tolist() == [False, False, True, True, True]
    assert pace.late("decide", polled, now).tolist() == [False, False, False, True, True]


def test_where_all_would_be_shed_some_are_scored_to_see() -> None:
    clock = Clock()
    pace = Pace(Budget(BUDGET_MS, "shed"), clock)
    now, polled = 10**15, np.full(9, 10**15 - 50 * 10**6)
    scored = 0
    for _ in range(100):
        scored += int(not pace.late("score", polled, now).any())
        clock.now += 0.01
    assert scored == pytest.approx(1.0 / PROBE_SECONDS, abs=1)
    assert pace.late("decide", polled, now).all()


@pytest.mark.parametrize(("values", "message"), [((0.0, "mark"), "above 0, got 0"), ((5, "drop"), "mark or shed, got drop")])
def test_what_cannot_be_a_budget_is_refused(values: tuple[float, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(*values)  # type: ignore[arg-type]
