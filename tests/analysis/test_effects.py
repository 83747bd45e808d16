"""Effects and intervals against scipy, brute-force bootstraps in float64, and their laws."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polysem.analysis.effects import (
    Cell,
    Estimate,
    cliffs_delta,
    interval_of_delta,
    median_difference,
    pair_deltas,
    placements,
    spread,
    unit_variance,
)

VALUES = arrays(np.float64, st.integers(1, 7), elements=st.integers(-3, 3).map(float))


def cell(values: np.ndarray, units: np.ndarray | None = None) -> Cell:
    units = np.arange(len(values)) if units is None else units
    return Cell(np.asarray(values, dtype=np.float64), units, int(units.max()) + 1)


@given(VALUES, VALUES)
def test_cliffs_delta_is_its_definition_and_turns_with_the_arms(
    a: np.ndarray, b: np.ndarray
) -> None:
    slow = np.mean([np.sign(x - y) for x in a for y in b])
    assert cliffs_delta(a, b) == pytest.approx(slow)
    assert cliffs_delta(b, a) == pytest.approx(-slow)
    wins = scipy.stats.mannwhitneyu(a, b).statistic
    assert cliffs_delta(a, b) == pytest.approx(2 * wins / (len(a) * len(b)) - 1)


@given(VALUES, VALUES, st.floats(0.1, 10), st.floats(-5, 5))
def test_cliffs_delta_knows_no_scale(a: np.ndarray, b: np.ndarray, by: float, plus: float) -> None:
    scaled = cliffs_delta(np.exp(a) * by + plus, np.exp(b) * by + plus)
    assert scaled == pytest.approx(cliffs_delta(a, b))


def test_cliffs_delta_at_its_ends() -> None:
    assert cliffs_delta([3, 4], [1, 2]) == 1
    assert cliffs_delta([1, np.inf], [np.inf, np.inf]) == -0.5
    assert np.isnan(cliffs_delta([], [1]))


def test_deltas_of_all_pairs_are_antisymmetric() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=n) for n in (2, 3, 5)]
    found = pair_deltas([cell(values) for values in drawn])
    assert found[1, 2] == pytest.approx(cliffs_delta(drawn[1], drawn[2]))
    assert np.allclose(found, -found.T)
    assert placements(drawn[0], np.sort(drawn[1])).mean() == pytest.approx(found[0, 1])


@pytest.mark.parametrize("how", ["mean", "median"])
@pytest.mark.parametrize("faces", [1, 2])
def test_the_variance_over_units_is_that_of_draws(how: str, faces: int) -> None:
    rng = np.random.default_rng(1)
    n = 101
    values = rng.gamma(2, size=(n, 1)) + 0.1 * rng.normal(size=(n, faces))
    units = np.repeat(np.arange(n), faces)
    statistic = np.mean if how == "mean" else np.median
    drawn = [statistic(values[rng.integers(0, n, n - 1)]) for _ in range(4000)]
    found = unit_variance(cell(values.reshape(-1), units), how)  # type: ignore[arg-type]
    assert found == pytest.approx(np.var(drawn), rel=0.06 if how == "mean" else 0.25)


def test_the_variance_of_a_mean_is_exact_and_placements_can_stand_for_values() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0, 3.0])
    assert unit_variance(cell(values), "mean") == pytest.approx(values.var(ddof=1) / 5)
    other = cell(np.zeros(5))
    assert unit_variance(other, values) == pytest.approx(values.var(ddof=1) / 5)
    assert np.isnan(unit_variance(cell(np.array([1.0])), "mean"))
    assert np.isnan(unit_variance(cell(np.array([1, np.inf, np.inf, np.inf])), "median"))


def test_an_interval_over_seeds_is_welchs() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, (3, 1)), rng.normal(1, 3, (5, 1))
    by_layer = a.mean(0) - b.mean(0)
    low, high = Estimate(by_layer[0], *spread(a, b, by_layer, None)).interval()
    welch = scipy.stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False).confidence_interval()
    assert (low, high) == pytest.approx((welch.low, welch.high))


def test_drawing_seeds_is_the_brute_bootstrap() -> None:
    """All draws of n - 1 of n networks, with replacement, units and layers carried along."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    a[:, 1], b[:, 1] = a[:, 0] + 1, b[:, 0] + 1  # layers add nothing

    def draws(arm: np.ndarray) -> np.ndarray:
        index = np.indices((len(arm),) * (len(arm) - 1)).reshape(len(arm) - 1, -1)
        return arm.mean(1)[index].mean(0)

    brute = draws(a).var() + draws(b).var()
    assert spread(a, b, a.mean(0) - b.mean(0), None)[0] == pytest.approx(brute)


def test_layers_add_what_they_differ_by_beyond_noise() -> None:
    """Units drawn alone where layers agree; layers drawn (n - 1 of n) where they do not."""
    empty = np.zeros((1, 3))
    by_layer, of_units = np.array([1.0, 3.0, 8.0]), np.full(3, 0.03)
    variance, freedom = spread(empty, empty, by_layer, (of_units, 50.0))
    index = np.indices((3, 3)).reshape(2, -1)
    assert variance == pytest.approx(by_layer[index].mean(0).var())
    assert 1.9 < freedom < 2
    variance, freedom = spread(empty, empty, np.array([1.0, 1.01, 1.02]), (of_units, 50.0))
    assert (variance, freedom) == pytest.approx((0.01, 50))


def test_two_networks_at_several_layers_follow_the_two_way_formula() -> None:
    """V_seed + V_layer - V_cell, as for two crossed factors."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(3, 4)) + 3 * rng.normal(size=4), rng.normal(size=(2, 4))
    by_layer = a.mean(0) - b.mean(0)
    cells = 0.0
    for arm in (a, b):
        rest = [
            arm[r, k] - arm[r].mean() - arm[:, k].mean() + arm.mean()
            for r in range(len(arm)) for k in range(4)
        ]  # fmt: skip
        cells += np.square(rest).sum() / ((len(arm) - 1) * 3) / len(arm) / 4
    seeds = a.mean(1).var(ddof=1) / 3 + b.mean(1).var(ddof=1) / 2
    expected = seeds + by_layer.var(ddof=1) / 4 - cells
    assert by_layer.var(ddof=1) / 4 > cells
    assert spread(a, b, by_layer, None)[0] == pytest.approx(expected)


def test_an_interval_of_delta_stays_in_its_range() -> None:
    low, high = interval_of_delta(Estimate(0.95, 0.01, 5))
    assert -1 < low < 0.95 < high < 1
    low, high = interval_of_delta(Estimate(0.0, 0.0001, 1e9))
    assert (low, high) == pytest.approx((-0.0196, 0.0196), abs=1e-4)
    assert np.isnan(interval_of_delta(Estimate(1.0, 0.0, 5))).all()
    assert np.isnan(Estimate(1.0, 0.0, 5).interval()).all()


def test_a_difference_of_medians_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        _, low, high = median_difference(rng.normal(2, 1, 80), rng.normal(0, 1, 60))
        covered += low <= 2 <= high
    assert covered >= 90
    assert np.isnan(median_difference([1.0], [])).all()
    assert median_difference([4.0, np.nan], [1.0])[0] == 3
