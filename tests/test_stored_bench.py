"""The stored parts of `bench.features` measure what they say: they run, small, and check their results."""

import argparse

import numpy as np
import pytest

from bench import features_stored
from bench.feature_stand import SQLITE, stand
from bench.figures import WrongError
from bench.redis_server import NoRedisError, binary


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(features_stored, "ENTITIES", 300)
    monkeypatch.setattr(features_stored, "COLD_ENTITIES", 2_000)
    monkeypatch.setattr(features_stored, "COLD_ROWS", 100)
    return argparse.Namespace(turns=1)


@pytest.mark.slow
def test_parts_without_redis(small: argparse.Namespace) -> None:
    figures = [*features_stored.warm(small), *features_stored.assembling(small)]
    assert {each["part"] for each in figures} == {"warm", "assemble"}
    assert all(each["median"] > 0 for each in figures)


@pytest.mark.slow
def test_cold_reads_beside_feast(small: argparse.Namespace) -> None:
    try:
        binary()
    except NoRedisError as error:
        pytest.skip(f"NO REDIS TESTED: {error}")
    figures = features_stored.cold(small)
    assert len(figures) == 2 * 2 * 4
    assert sum("goal" in each for each in figures) == 2


def test_wrong_values_give_no_figures() -> None:
    with stand(SQLITE, 20) as made:
        which = np.arange(20)
        columns = {f"profile__f{k}": made.values[:, k].copy() for k in range(10)}
        made.check(columns, which)
        made.check_sdk(made.sdk(which), which)
        columns["profile__f3"][7] += 1
        with pytest.raises(WrongError, match="f3: not the values that were written"):
            made.check(columns, which)
