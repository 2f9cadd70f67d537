"""What a backlog needed is given back once it is over, and not asked for all the time."""

import ctypes
import threading
import time

import numpy as np
import pytest

from streams.tidy import Tidy, resident, tidying


def test_it_gives_back_while_more_is_used_than_it_left_at_its_best() -> None:
    used, given = [400e6], list[float]()

    def give_back() -> None:
        given.append(used[0])
        used[0] -= 100e6

    tidy = Tidy(lambda: int(used[0]), give_back)
    for now, gives in ((450e6, False), (463e6, False), (464e6, True), (428e6, True), (390e6, False), (900e6, True)):
        used[0] = now
        assert tidy.look() is gives, now
    assert given == [464e6, 428e6, 900e6]


def test_what_is_used_for_good_is_asked_for_more_and_more_seldom() -> None:
    used = [100e6]
    tidy = Tidy(lambda: int(used[0]), lambda: None, 30)
    used[0] = 900e6
    waits = []
    for _ in range(7):
        assert tidy.look()
        waits.append(tidy.wait)
    assert waits == [60, 120, 240, 480, 600, 600, 600]
    tidy = Tidy(lambda: int(used[0]), lambda: used.append(used.pop() - 70e6), 30)
    used[0] += 100e6
    assert tidy.look()
    assert tidy.wait == 30


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
