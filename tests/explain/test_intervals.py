"""Bootstrap intervals of means."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from polysem.explain.intervals import mean_interval


def test_it_is_scipys_percentile_interval() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    theirs = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=2000, random_state=1
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), rel=0.03)


def test_it_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, low, high = mean_interval(rng.normal(3, 1, size=50), resamples=300)
        hits += low <= 3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_missing_values_are_left_out() -> None:
    assert mean_interval([1.0, math.nan, 3.0])[0] == 2
    assert mean_interval([math.nan, 5.0])[0] == 5
    assert all(math.isnan(v) for v in mean_interval([5.0])[1:])
    assert all(math.isnan(v) for v in mean_interval([math.nan]))


def test_the_same_draws_whatever_the_values() -> None:
    values = np.random.default_rng(3).normal(size=12)
    mean, low, high = mean_interval(values)
    assert mean_interval(2 * values + 1) == pytest.approx((2 * mean + 1, 2 * low + 1, 2 * high + 1))
