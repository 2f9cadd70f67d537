"""What a backlog needed is given back once it is over, and not asked for all the time."""

import ctypes
import threading
import time

import numpy as np
import pytest

from streams.tidy import Tidy, resident, tidying


def test_it_gives_back_while_more_is_used_than_there_was_at_its_best() -> None:
    used, given = [400e6], list[float]()

    def give_back() -> None:
        given.append(used[0])
        used[0] -= 100e6

    tidy = Tidy(lambda: int(used[0]), give_back, lambda: 0.0)
    for now, gives in ((410e6, False), (415e6, False), (416e6, True), (331e6, False), (332e6, True), (1000e6, True)):
        used[0] = now
        assert tidy.look() is gives, now
    assert given == [416e6, 332e6, 1000e6]


def test_of_much_a_share_more_is_nothing() -> None:
    used = [2000e6]
    tidy = Tidy(lambda: int(used[0]), lambda: None, lambda: 0.0)
    used[0] = 2059e6
    assert not tidy.look()
    used[0] = 2061e6
    assert tidy.look()


def test_what_is_used_for_good_is_asked_for_more_and_more_seldom_until_more_is() -> None:
    used = [100e6]
    tidy = Tidy(lambda: int(used[0]), lambda: None, lambda: 0.0)
    used[0] = 900e6
    looks = [tidy.look() for _ in range(70)]
    assert [k for k, gave in enumerate(looks) if gave] == [0, 1, 3, 7, 15, 31, 51]
    used[0] = 1200e6
    assert [tidy.look() for _ in range(5)] == [True, True, False, True, False]


def test_a_backlog_that_is_over_by_the_second_look_is_given_back_then() -> None:
    used, free = [900e6], [0.0]

    def give_back() -> None:
        used[0] -= free[0]

    tidy = Tidy(lambda: int(used[0]), give_back, lambda: 0.0)
    used[0] = 1000e6
    for _ in range(40):
        tidy.look()
    used[0] = 1300e6
    assert tidy.look()
    free[0] = 300e6
    assert tidy.look()
    assert used[0] == 1000e6


def test_what_was_used_in_vain_is_asked_for_again_when_there_is_less_to_do() -> None:
    used, worked = [100e6], [0.0]
    tidy = Tidy(lambda: int(used[0]), lambda: None, lambda: worked[0])
    used[0] = 900e6

    def gives(busy: float) -> bool:
        worked[0] += busy
        return tidy.look()

    assert [gives(20) for _ in range(6)] == [True, True, False, True, False, False], "as where the work stays the same"
    assert [gives(busy) for busy in (3, 20, 3, 20, 3, 20, 3, 20, 3)] == [True] + 7 * [False] + [True], "once, then as before"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library has no malloc_trim")
def test_what_lies_between_what_is_used_goes_back_to_the_system() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what other tests have left
    with tidying(seconds=0.05):
        names = {thread.name for thread in threading.enumerate()}
        blocks = [np.ones(4_000) for _ in range(10_000)]  # 320 MB, each too small to be given back for itself
        kept = blocks[::500]
        most = resident()
        del blocks
        deadline = time.monotonic() + 10
        while most - resident() < 200e6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert most - resident() >= 200e6, f"{len(kept)} are kept: {most:,} and {resident():,}"
    assert "tidy" in names
    assert "tidy" not in {thread.name for thread in threading.enumerate()}
