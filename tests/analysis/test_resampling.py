import numpy as np
import pytest
from scipy.stats import norm

from polysem.analysis.resampling import interval, resampled_mean, resamplings


def test_the_first_row_is_the_data_and_all_rows_are_weights() -> None:
    weights = resamplings(7, n=50)
    np.testing.assert_array_equal(weights[0], np.full(7, 1 / 7))
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_array_equal(weights, resamplings(7, n=50))
    assert not np.array_equal(weights, resamplings(7, n=50, seed=1))


def test_means_are_those_of_repeated_images() -> None:
    values = np.random.default_rng(0).normal(size=(5, 2, 3))
    weights = resamplings(5, n=4)
    found = resampled_mean(weights, values)
    for row, draw in zip(found, weights, strict=True):
        again = np.repeat(values, np.round(draw * 5).astype(int), axis=0)
        np.testing.assert_allclose(row, again.mean(0))


def test_missing_values_are_left_out() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan]])
    mean = resampled_mean(np.array([[0.5, 0.5], [1.0, 0.0]]), values)
    np.testing.assert_array_equal(mean, [[2.0, np.nan], [1.0, np.nan]])
    one = resampled_mean(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([4.0, np.nan]))
    np.testing.assert_array_equal(one, [4.0, np.nan])


def test_an_interval_covers_the_mean_of_a_normal_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 300))  # 300 samples of 40
    mean, low, high = interval(resampled_mean(resamplings(40, n=400), values))
    np.testing.assert_allclose(mean, values.mean(0))
    assert ((low < 0) & (high > 0)).mean() == pytest.approx(0.95, abs=0.04)
    expected = 2 * norm.ppf(0.975) / np.sqrt(40)
    assert (high - low).mean() == pytest.approx(expected, rel=0.1)


def test_one_image_has_no_interval() -> None:
    mean, low, high = interval(resampled_mean(resamplings(1), np.array([[3.0]])))
    assert mean[0] == 3 and np.isnan(low[0]) and np.isnan(high[0])
