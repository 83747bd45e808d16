"""Similarities of maps: known answers, and the laws that all four share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from polysem.explain.similarity import (
    SIMILARITIES,
    hog_similarity,
    spearman_abs_similarity,
    spearman_similarity,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([(8, 8), (9, 14), (31, 16), (32, 48)])


def noise(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@given(SEEDS, SIZES)
@settings(max_examples=15, deadline=None)
def test_equal_maps_are_one_whatever_their_scale(seed: int, shape: tuple[int, int]) -> None:
    one = noise(seed, shape)
    for name, similarity in SIMILARITIES.items():
        assert similarity(one, one) == pytest.approx(1), name
        assert similarity(one, 7 * one) == pytest.approx(1), name
        assert similarity(one.astype(np.float32), one) == pytest.approx(1, abs=1e-5), name


@given(SEEDS, SIZES)
@settings(max_examples=15, deadline=None)
def test_all_are_symmetric_and_at_most_one(seed: int, shape: tuple[int, int]) -> None:
    one, other = noise(seed, shape), noise(seed + 1, shape)
    for name, similarity in SIMILARITIES.items():
        value = similarity(one, other)
        assert -1 <= value <= 1, name
        assert value == pytest.approx(similarity(other, one)), name


@pytest.mark.parametrize("name", SIMILARITIES)
def test_unrelated_noise_is_near_zero(name: str) -> None:
    values = [SIMILARITIES[name](noise(i, (64, 64)), noise(99 + i, (64, 64))) for i in range(8)]
    assert abs(np.mean(values)) < 0.12


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_constant_map_has_no_similarity(name: str) -> None:
    some = noise(0, (16, 16))
    for flat in (np.zeros((16, 16)), np.full((16, 16), 3.0)):
        assert np.isnan(SIMILARITIES[name](some, flat))
        assert np.isnan(SIMILARITIES[name](flat, some))


def test_the_sign_matters_to_one_and_not_to_the_other() -> None:
    one = noise(3, (10, 12))
    assert spearman_similarity(one, -one) == pytest.approx(-1)
    assert spearman_abs_similarity(one, -one) == pytest.approx(1)
    assert hog_similarity(one, -one) == pytest.approx(1)  # orientations are unsigned


def test_ranks_share_ties_as_in_scipy() -> None:
    one = np.round(noise(4, (12, 9)))
    other = np.round(noise(5, (12, 9)) + one)
    assert spearman_similarity(one, other) == pytest.approx(
        spearmanr(one.ravel(), other.ravel()).statistic
    )
