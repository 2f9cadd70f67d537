"""Thresholds hold the rate that was set on months never seen, find what was planted, and travel as data only."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bench.dense import write_model
from models.reference import (
    DAY_US,
    STATISTICS,
    Reference,
    ReferenceTooShortError,
    blocks,
    build_reference,
    judge,
    statistics,
)
from models.spec import ModelSpec
from ops.train import write_reference

NAMES = ("carrier", "distance", "delay", "temp", "history")
CATEGORICAL = (True, False, False, False, False)
START = np.datetime64("2013-01-01").astype(np.int64)


def stream(days: int, rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a year as real ones are: a delay and a temperature that a day's rows share, seasons, one steady number."""
    random = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), rows)
    season = 12 * np.sin(2 * np.pi * day / 365)
    columns = [
        random.choice(26, day.size, p=np.r_[0.01, np.full(5, 0.15), np.full(20, 0.012)]),
        random.gamma(2.0, 500.0, day.size),
        random.gamma(1.0, 10.0, days)[day] + random.exponential(20.0, day.size),
        season + random.normal(0, 6, days)[day] + random.normal(0, 2, day.size),
        np.where(random.random(day.size) < 0.03, np.nan, random.normal(0, 1, day.size)),
    ]
    matrix = np.stack(columns, axis=1).astype(np.float32)
    scores = 1 / (1 + np.exp(-(matrix[:, 2] - 30) / 20))
    times = (START + day) * DAY_US + random.integers(0, DAY_US, day.size)
    return matrix, scores.astype(np.float32), times


def counts_by_day(reference: Reference, matrix: np.ndarray, scores: np.ndarray, times: np.ndarray) -> np.ndarray:
    day = times // DAY_US
    return np.stack([reference.count(matrix[day == d], scores[day == d]) for d in np.unique(day)])


@pytest.fixture(scope="module")
def year() -> Reference:
    return build_reference(NAMES, CATEGORICAL, *stream(270))


def test_counts_per_day_are_the_rows_of_the_day_in_any_order(year: Reference) -> None:
    matrix, scores, times = stream(270)
    assert year.counts.shape == (270, 6, 21)
    assert (year.counts.sum(-1) == 300).all()
    assert np.array_equal(year.counts, counts_by_day(year, matrix, scores, times))
    mixed = np.random.default_rng(5).permutation(len(scores))
    again = build_reference(NAMES, CATEGORICAL, matrix[mixed], scores[mixed], times[mixed])
    assert np.array_equal(again.counts, year.counts)
    assert np.array_equal(again.null, year.null)


def test_categories_have_a_bin_each_and_their_tail_the_last(year: Reference) -> None:
    matrix, _, _ = stream(270)
    codes = np.bincount(matrix[:, 0].astype(int), minlength=26)
    assert year.total[0, :-2].tolist() == codes[:19].tolist()
    assert year.total[0, -2] == codes[19:].sum()


def test_edges_of_numbers_cut_equal_shares_and_duplicates_are_dropped() -> None:
    matrix, scores, times = stream(60)
    matrix[:, 1] = np.where(np.arange(len(matrix)) % 10 < 9, 0.0, matrix[:, 1])
    reference = build_reference(NAMES, CATEGORICAL, matrix, scores, times)
    assert np.isfinite(reference.edges[1]).sum() == 2
    shares = reference.total[4, :-1] / reference.total[4, :-1].sum()
    assert shares == pytest.approx(np.full(20, 0.05), abs=1e-3)
    assert reference.total[1, 0] == (matrix[:, 1] == 0).sum()


def test_a_days_null_statistics_leave_out_its_whole_month(year: Reference) -> None:
    month = blocks(year.days)
    assert len(np.unique(month)) == 9
    others = year.counts[month != month[100]].sum(0)
    assert year.null[100] == pytest.approx(statistics(others, year.counts[100]), rel=1e-12)


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_on_months_left_out_the_share_of_days_that_alarm_is_at_most_twice_the_rate(rate: float) -> None:
    alarmed, judged = 0, 0
    for seed in range(3):
        matrix, scores, times = stream(270, rows=120, seed=seed)
        month = blocks(times // DAY_US)
        for held in np.unique(month):
            out = month == held
            reference = build_reference(NAMES, CATEGORICAL, matrix[~out], scores[~out], times[~out])
            thresholds = reference.thresholds(rate)
            days = counts_by_day(reference, matrix[out], scores[out], times[out])
            alarmed += sum(judge(reference, counts, thresholds).alarmed.any() for counts in days)
            judged += len(days)
    assert judged == 3 * 270
    assert alarmed / judged <= 2 * rate


def test_thresholds_rise_as_the_rate_falls_beyond_the_days_there_are(year: Reference) -> None:
    limits = [year.thresholds(rate) for rate in (0.2, 0.02, 1 / 271, 1e-3, 1e-4)]
    assert limits[0].shape == (6, len(STATISTICS))
    for higher, lower in zip(limits[1:], limits, strict=False):
        assert (higher > lower).all()
    assert (judge_all(year, year.thresholds(1 / 271)) <= 1).all()
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            year.thresholds(wrong)


def judge_all(reference: Reference, thresholds: np.ndarray) -> np.ndarray:
    return (reference.null > thresholds).sum(0)


def test_half_a_deviation_in_a_steady_feature_is_found_each_day_and_touches_no_other(year: Reference) -> None:
    matrix, scores, times = stream(60, seed=9)
    shifted = matrix.copy()
    shifted[:, 1] += 0.5 * matrix[:, 1].std()
    thresholds = year.thresholds(0.02)
    plain, moved = (counts_by_day(year, m, scores, times) for m in (matrix, shifted))
    found = 0
    for before, after in zip(plain, moved, strict=True):
        one, two = judge(year, before, thresholds), judge(year, after, thresholds)
        others = np.array(two.feature) != "distance"
        assert np.array_equal(one.value[others], two.value[others])
        assert np.array_equal(one.alarmed[others], two.alarmed[others])
        assert not one.alarmed[~others].any()
        found += two.alarmed[~others].any()
    assert found == 60


def test_a_month_that_lacked_a_feature_does_not_blind_the_others() -> None:
    matrix, scores, times = stream(270)
    usual = build_reference(NAMES, CATEGORICAL, matrix, scores, times).thresholds(0.02)
    matrix[blocks(times // DAY_US) == blocks(times // DAY_US)[150 * 300], 4] = np.nan
    odd = build_reference(NAMES, CATEGORICAL, matrix, scores, times).thresholds(0.02)
    assert (odd[:2] < 9 * usual[:2] + 1e-9).all()


def test_days_before_a_feature_began_and_parts_of_days_at_the_ends_are_left_out() -> None:
    matrix, scores, times = stream(120)
    day = times // DAY_US - START
    matrix[day < 31, 4] = np.nan
    kept = (day > 0) & ((day < 119) | (np.arange(len(day)) % 10 == 0))
    reference = build_reference(NAMES, CATEGORICAL, matrix[kept], scores[kept], times[kept])
    assert (reference.days - START).tolist() == list(range(32, 119))


def test_a_feature_that_never_has_a_value_is_judged_by_its_missing_rate() -> None:
    matrix, scores, times = stream(120)
    present = matrix[:300].copy()
    matrix[:, 4] = np.nan
    reference = build_reference(NAMES, CATEGORICAL, matrix, scores, times)
    assert len(reference.days) == 120
    told = judge(reference, reference.count(present, scores[:300]), reference.thresholds(0.02))
    told_of = [(f, s) for f, s, alarmed in zip(told.feature, told.statistic, told.alarmed, strict=True) if alarmed]
    assert ("history", "missing") in told_of


def test_a_hashed_value_that_becomes_frequent_is_seen_by_its_bucket() -> None:
    matrix, scores, times = stream(120)
    matrix[:, 4] = 1 + np.random.default_rng(1).zipf(1.3, len(matrix)) * 2_654_435_761 % 999
    reference = build_reference(NAMES, CATEGORICAL, matrix, scores, times)
    usual, today = matrix[-300:], matrix[-300:].copy()
    today[::2, 4] = 500
    for rows, expected in ((usual, False), (today, True)):
        told = judge(reference, reference.count(rows, scores[-300:]), reference.thresholds(0.02))
        told_of = [(f, s) for f, s, alarmed in zip(told.feature, told.statistic, told.alarmed, strict=True) if alarmed]
        assert (("history", "psi") in told_of) == expected


def test_too_few_days_and_shapes_that_do_not_fit_are_told() -> None:
    matrix, scores, times = stream(13)
    with pytest.raises(ReferenceTooShortError, match="at least 14 whole days of training data, got 13"):
        build_reference(NAMES, CATEGORICAL, matrix, scores, times)
    with pytest.raises(ValueError, match=r"columns.*got \(3900, 4\)"):
        build_reference(NAMES, CATEGORICAL, matrix[:, 1:], scores, times)


def test_saved_and_loaded_it_is_the_same(year: Reference, tmp_path: Path) -> None:
    year.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference.json", "reference.safetensors"]
    loaded = Reference.load(tmp_path)
    assert (loaded.names, loaded.categorical, loaded.identity) == (year.names, year.categorical, year.identity)
    for name in ("edges", "days", "counts", "null"):
        got, expected = getattr(loaded, name), getattr(year, name)
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)
    words = tmp_path / "reference.json"
    words.write_text(words.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="expected version"):
        Reference.load(tmp_path)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_vector_or_several_scores_have_no_reference(tmp_path: Path, outputs: int) -> None:
    write_model(tmp_path, "dense", "x", (3, 4, outputs))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(300, dtype=np.float32)), 3)
    rows = pa.table({"x": vectors, "event_time": pa.array(np.arange(100) * DAY_US, pa.timestamp("us", "UTC"))})
    scores = write_reference(rows, tmp_path)
    assert scores.shape == ((100,) if outputs == 1 else (100, 2))
    assert not list(tmp_path.glob("reference*"))
    assert ModelSpec.read(tmp_path).medians == {}


def test_several_scores_a_row_are_refused() -> None:
    matrix, scores, times = stream(20)
    with pytest.raises(ValueError, match=r"reference: expected a matrix of 6000 rows"):
        build_reference(NAMES, CATEGORICAL, matrix, np.stack([scores, scores], 1), times)
