"""Matching of units against planted permutations, and each formula against its slow rewriting."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from drawn_run import Activations, PlainSource, pooled_activations, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.analysis import matching
from polysem.analysis.faces import faces
from polysem.analysis.matching import (
    correlations,
    covariances,
    deviations,
    linear_cka,
    match_units,
)

N = 41
MLP = "blocks.0.mlp.hook_post"


def slow_covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = np.zeros((a.shape[1], b.shape[1]))
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            found[i, j] = np.mean((a[:, i] - a[:, i].mean()) * (b[:, j] - b[:, j].mean()))
    return found


def test_moments_of_faces_are_those_of_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    source = PlainSource("drawn", [str(i) for i in range(N)])
    shown = [Activations(1e3 + rng.normal(size=(N, 5, 2, 3))) for _ in range(2)]
    shown[1].values[:, 2] = 7.0  # a dead unit
    runs = [
        write_run(tmp_path / str(i), source, {MLP: each}, pooled=True)
        for i, each in enumerate(shown)
    ]
    monkeypatch.setattr(matching, "_SLAB", 5 * 7)  # several slabs, the last one short
    for first, second in zip(faces(runs[0], MLP), faces(runs[1], MLP), strict=True):
        a, b = (
            first.sign * pooled_activations(MLP, each)[first.pool].astype(np.float64)
            for each in shown
        )
        expected = slow_covariance(a, b)
        assert covariances(first, second) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert covariances(first, first) == pytest.approx(slow_covariance(a, a), rel=1e-4, abs=1e-4)
        found = correlations(covariances(first, second), deviations(first), deviations(second))
        for i, j in np.ndindex(5, 5):
            if j == 2:
                assert np.isnan(found[i, j])
            else:
                assert found[i, j] == pytest.approx(np.corrcoef(a[:, i], b[:, j])[0, 1], abs=1e-4)


@given(st.permutations(range(7)), st.floats(0.0, 0.3), st.integers(0, 99))
def test_a_permutation_is_undone(order: list[int], noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    likeness = np.eye(7)[:, order] + noise * rng.uniform(-1, 1, size=(2, 7, 7))
    # column j of eye[:, order] is 1 in row order[j]: there the unit came from
    assert match_units(likeness).tolist() == list(order)


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_no_other_matching_is_better(seed: int) -> None:
    likeness = np.random.default_rng(seed).normal(size=(4, 4))
    found = match_units(likeness)
    best = max(sum(likeness[p[j], j] for j in range(4)) for p in permutations(range(4)))
    assert sum(likeness[found[j], j] for j in range(4)) == pytest.approx(best)


def test_units_without_a_correlation_are_matched_to_none() -> None:
    likeness = np.array([[0.9, np.nan, 0.1], [0.2, np.nan, 0.8], [np.nan, np.nan, np.nan]])
    assert match_units(likeness).tolist() == [0, -1, 1]


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019: HSIC of linear kernels, normalised."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def cka(x: np.ndarray, y: np.ndarray) -> float:
    return linear_cka(slow_covariance(x, y), slow_covariance(x, x), slow_covariance(y, y))


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_cka_is_that_of_the_kernels_and_blind_to_rotation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(13, 3)), rng.normal(size=(13, 5)) + 2
    found = cka(x, y)
    assert found == pytest.approx(slow_cka(x, y), abs=1e-10)
    assert -1e-12 <= found <= 1 + 1e-12
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert cka(x, 3 * y @ rotation + 1) == pytest.approx(found, abs=1e-10)
    assert cka(y, y @ rotation) == pytest.approx(1, abs=1e-10)


def test_cka_of_a_constant_layer_is_missing() -> None:
    assert np.isnan(cka(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 3))))
