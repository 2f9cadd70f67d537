"""Arrays that grow keep what is in them, begin at a page, and are not pulled away from under one who looks."""

import numpy as np
import pytest

from features.growing import HUGE_PAGE, Growing


@pytest.mark.parametrize(("shape", "kind"), [((4,), np.float64), ((), np.int32), ((256,), np.uint8), ((3, 5), np.int64)])
def test_what_is_in_it_stays_and_the_rest_is_zero(shape: tuple[int, ...], kind: type) -> None:
    grown, filled = Growing(shape, kind), 0
    for rows in (1, 3, 2, 1000, 70_000, 70_001, 600_000):
        grown.grow(rows)
        assert len(grown) >= rows
        assert grown.array.shape == (len(grown), *shape)
        marks = (1 + np.arange(filled) % 7).reshape(-1, *(1 for _ in shape))
        assert (grown.array[:filled] == marks).all()
        assert not grown.array[filled:].any()
        filled = len(grown)
        grown.array[:] = (1 + np.arange(filled) % 7).reshape(-1, *(1 for _ in shape))
    assert grown.array.nbytes > HUGE_PAGE
    assert grown.array.ctypes.data % 4096 == 0


def test_who_looks_at_it_keeps_what_he_sees() -> None:
    grown = Growing((2,), np.float64)
    grown.grow(HUGE_PAGE)
    grown.array[:] = 5.0
    seen = grown.array
    grown.grow(4 * HUGE_PAGE)
    grown.array[:] = 6.0
    assert (seen == 5.0).all()
    assert len(grown) >= 4 * HUGE_PAGE


def test_rows_of_nothing_take_no_room() -> None:
    grown = Growing((0,), np.uint8)
    grown.grow(10**9)
    assert grown.array.shape == (0, 0)
