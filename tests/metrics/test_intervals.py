"""Bootstrap intervals: the figure itself, the width, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechgpt_lib.metrics.unit_errors import bootstrap_mean, bootstrap_ratio


def test_ratio_of_sums_not_mean_of_ratios():
    estimate = bootstrap_ratio([1, 0], [1, 9])
    assert estimate.value == pytest.approx(0.1) and estimate.n == 2
    assert 0 <= estimate.low <= 0.1 <= estimate.high <= 1


def test_estimate_becomes_json():
    row = json.loads(json.dumps(dataclasses.asdict(bootstrap_mean([True, False, True]))))
    assert set(row) == {"value", "n", "low", "high"} and row["n"] == 3


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_every_draw_has_as_many_items_as_there_are():
    values = np.random.default_rng(0).random(50)
    draws = np.random.default_rng(3).integers(0, 50, (200, 50))  # all at once
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    estimate = bootstrap_mean(values, seed=3, draws=200)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_width_follows_the_standard_error():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    estimate = bootstrap_mean(values, draws=2000)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    trials = [bootstrap_mean(rng.random(80) < 0.3, seed=i, draws=300) for i in range(200)]
    covered = np.mean([trial.low <= 0.3 <= trial.high for trial in trials])
    assert 0.88 <= covered <= 0.99


def test_items_without_words_do_not_divide_by_zero():
    estimate = bootstrap_ratio([0, 1, 1], [0, 0, 2])
    assert estimate.value == 1 and np.isfinite([estimate.low, estimate.high]).all()


@pytest.mark.parametrize(
    ("top", "bottom", "options", "message"),
    [
        ([], [], {}, "at least one"),
        ([1], [1, 2], {}, "one length"),
        ([1], [0], {}, "all be zero"),
        ([1, 1], [2, -1], {}, "negative"),
        ([float("nan")], [1], {}, "finite"),
        ([1], [1], {"draws": 0}, "draws"),
    ],
)
def test_refusals(top, bottom, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ratio(top, bottom, **options)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=30))
def test_interval_lies_within_the_range_of_items(items):
    top, bottom = zip(*items, strict=True)
    estimate = bootstrap_ratio(top, bottom, draws=50)
    ratios = [a / b for a, b in items]
    slack = 1e-9
    assert min(ratios) - slack <= estimate.low <= estimate.high <= max(ratios) + slack
    assert estimate.value == pytest.approx(sum(top) / sum(bottom))
