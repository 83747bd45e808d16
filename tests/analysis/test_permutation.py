"""Permutation tests against scipy's and against slow definitions."""

from itertools import permutations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from polysem.analysis.effects import Cell, cliffs_delta
from polysem.analysis.permutation import (
    DRAWS,
    least_p,
    paired,
    shuffled_deltas,
    swapped_arms,
)


def difference(a: np.ndarray, b: np.ndarray, axis: int = 0) -> np.ndarray:
    return a.mean(axis) - b.mean(axis)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 3), (4, 5)])
def test_swapped_arms_are_scipys_exact_test(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, sizes[0]), rng.normal(0, 1, sizes[1])
    both = np.concatenate([a, b])
    p, least = swapped_arms(both[:, None] - both, sizes[0])
    # scipy doubles the smaller tail; the larger of both sizes is counted here
    null = scipy.stats.permutation_test(
        (a, b), difference, n_resamples=np.inf, axis=0
    ).null_distribution  # fmt: skip
    slow = np.mean(np.abs(null) >= abs(difference(a, b)) * (1 - 1e-9))
    assert p == pytest.approx(slow)
    assert least == least_p(*sizes) <= p


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 5))
def test_which_arm_comes_first_does_not_matter(seed: int, n: int, m: int) -> None:
    values = np.random.default_rng(seed).normal(size=n + m)
    one, _ = swapped_arms(values[:, None] - values, n)
    turned = np.concatenate([values[n:], values[:n]])
    other, _ = swapped_arms(turned[:, None] - turned, m)
    assert one == pytest.approx(other)


def test_the_smallest_p_is_reached_by_arms_that_are_apart() -> None:
    for n, m in ((3, 3), (4, 4), (3, 6), (1, 4)):
        values = np.array([*range(n), *range(100, 100 + m)], dtype=float)
        p, least = swapped_arms(values[:, None] - values, n)
        assert p == pytest.approx(least)
    assert least_p(10, 10) == 1 / (DRAWS + 1)  # too many to go through
    values = np.arange(20.0)
    assert swapped_arms(values[:, None] - values, 10)[0] == 1 / (DRAWS + 1)


def test_shuffled_deltas_are_deltas_of_shuffled_units() -> None:
    """Two units against two, two faces the first: all 24 orders, slowly."""
    first = Cell(np.array([0.5, 3.0, 1.0]), np.array([0, 0, 1]), 2)
    second = Cell(np.array([1.0, 2.0]), np.array([0, 1]), 2)
    units = [[0.5, 3.0], [1.0], [1.0], [2.0]]
    slow = {
        round(cliffs_delta(units[i] + units[j], units[k] + units[m]), 9)
        for i, j, k, m in permutations(range(4))
    }
    found = shuffled_deltas([first], [second])
    assert found[0] == pytest.approx(cliffs_delta(first.values, second.values))
    assert {round(x, 9) for x in found.tolist()} == slow
    assert len(found) == DRAWS + 1


def test_units_without_a_value_count_as_units_only() -> None:
    """A dead unit takes a place when units are shuffled, and none among ranks."""
    first = Cell(np.array([5.0]), np.array([1]), 3)
    second = Cell(np.array([1.0, 2.0]), np.array([0, 2]), 3)
    found = shuffled_deltas([first], [second])
    assert found[0] == 1
    assert np.isnan(found).any()  # all values on one side


def test_layers_are_shuffled_each_by_itself() -> None:
    cells = [Cell(np.arange(3.0), np.arange(3), 3), Cell(np.arange(1.0, 4), np.arange(3), 3)]
    one, other = (shuffled_deltas(cells[:1], cells[1:], layer=k) for k in (0, 1))
    assert one[0] == other[0]
    assert abs(np.corrcoef(one[1:], other[1:])[0, 1]) < 0.1


def test_paired_images_are_scipys_sign_test() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1, 12)
    found, p = paired(differences)
    exact = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert p == pytest.approx(exact.pvalue, abs=0.03)
    test = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    assert found.interval() == pytest.approx((test.low, test.high))
    assert paired(np.zeros(5))[1] == 1
