"""What `bench.engines` prints is of right results: every kernel agrees with its twin on the stand, or there is no figure."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bench.engines import _kernel, engines, taken
from bench.figures import WrongError
from bench.kernel_stand import CASES, Case


@pytest.mark.parametrize(("make", "items"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_each_kernel_agrees_with_its_twin_on_the_stand(make: Callable[[int, np.random.Generator], Case], items: int) -> None:
    case = make(640, np.random.default_rng(1))
    ours, theirs, share = _kernel(case, 1, 1e10)
    assert ours["median"] > 0
    assert share["median"] == pytest.approx(ours["median"] / theirs["median"])


def test_there_is_no_figure_of_a_wrong_result() -> None:
    case = CASES[0][0](100, np.random.default_rng(1))
    with pytest.raises(WrongError, match="other results than its twin"):
        list(_kernel(replace(case, run=lambda: np.zeros(100, np.uint64)), 1, 1e10))


def test_engines_are_measured_beside_the_runtime_by_turns() -> None:
    figures = list(engines(1, 0.001, models=((8, 4, 1),), sizes=(1, 64)))
    assert [(one["unit"], "goal" in one) for one in figures] == [
        ("us", False),
        *[("us", True)] * 3,
        ("us", False),
        *[("", True)] * 3,
    ]
    called: list[int] = []
    calls = [lambda k=k: called.append(k) for k in range(3)]
    assert len(taken(calls, 0)) == 3
    assert called == [0, 1, 2] * 9
