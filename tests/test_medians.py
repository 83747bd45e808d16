"""Medians with intervals: coverage, and agreement with resampling."""

import numpy as np
import pytest

from polysem.medians import median_interval


def test_interval_equals_plain_resampling() -> None:
    rng = np.random.default_rng(0)
    for n in (24, 201):
        values = rng.gamma(1, size=n)
        drawn = np.median(rng.choice(values, (20_000, n)), axis=1)
        median, low, high = median_interval(values)
        assert median == np.median(values)
        spread = drawn.std()
        assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.6 * spread)
        assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.6 * spread)


def test_missing_values_are_left_out_and_infinite_ones_ranked() -> None:
    assert np.isnan(median_interval([np.nan])).all()
    assert median_interval([1, 2, np.inf, np.nan])[0] == 2
