"""Every score of a unit: its laws, its range and both ends; a new one has to be declared here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats

from polysem.analysis import excitation, monosemanticity, peer_scores, selectivity

N, UNITS, DIM, CLASSES = 60, 5, 7, 3
RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(0.3, 1, (N, DIM))
LABELS = np.arange(N) % CLASSES

Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Declared:
    """What a score promises."""

    score: Score
    low: float
    high: float
    moves_with_offset: bool = False


def means(a: np.ndarray) -> np.ndarray:
    return selectivity.class_means(a, LABELS)


def exemplars(a: np.ndarray) -> np.ndarray:
    return peer_scores.top_exemplars(a, EMBEDDINGS, 8)


SCORES = {
    "tail_ratio": Declared(excitation.tail_ratio, 0, np.inf),
    "excess_kurtosis": Declared(excitation.excess_kurtosis, -2, np.inf),
    "hoyer_sparsity": Declared(excitation.hoyer_sparsity, 0, 1),
    "treves_rolls_sparsity": Declared(excitation.treves_rolls_sparsity, 0, 1),
    "gini_index": Declared(excitation.gini_index, 0, 1),
    "near_max_share": Declared(excitation.near_max_share, 1 / N, 1),
    "half_mass_share": Declared(excitation.half_mass_share, 1 / N, 1),
    "selectivity_index": Declared(lambda a: selectivity.selectivity_index(means(a)), 0, 1),
    "effective_classes": Declared(lambda a: selectivity.effective_classes(means(a)), 1, CLASSES),
    "class_aurocs": Declared(lambda a: selectivity.class_aurocs(a, LABELS).max(0), 0, 1),
    "monosemanticity_score": Declared(
        lambda a: monosemanticity.monosemanticity_score(a, EMBEDDINGS), -1, 1
    ),
    "monosemanticity_error": Declared(
        lambda a: monosemanticity.monosemanticity_error(a, EMBEDDINGS), 0, np.inf
    ),
    "clarity_score": Declared(lambda a: peer_scores.clarity_score(exemplars(a)), -1 / 7, 1),
    "two_centre_polysemanticity": Declared(
        lambda a: peer_scores.two_centre_polysemanticity(exemplars(a)), 0, 2
    ),
    "redundancy_score": Declared(lambda a: peer_scores.redundancy_score(exemplars(a)), -1, 1),
}

#: Public functions that are no score of a unit: steps on the way.
STEPS = {
    "centroids", "class_means", "facet_distances", "hoyer_from_moments", "top_exemplars",
    "treves_rolls_from_moments", "unit_length",
}  # fmt: skip


def activations() -> np.ndarray:
    """[image, unit]: skewed, normal, constant, few values, one image alone."""
    rng = np.random.default_rng(1)
    found = rng.gamma(0.7, size=(N, UNITS))
    found[:, 1] = rng.normal(size=N)
    found[:, 2] = -1.5
    found[:, 3] = rng.integers(0, 3, N)
    return found


def test_every_score_is_declared() -> None:
    modules = (excitation, monosemanticity, peer_scores, selectivity)
    offered = {name for module in modules for name in module.__all__}
    assert offered == set(SCORES) | STEPS


@pytest.mark.parametrize("name", SCORES)
def test_range_missing_values_and_invariances(name: str) -> None:
    declared, a = SCORES[name], activations()
    found = declared.score(a)
    assert found.shape == (UNITS,)
    assert found.dtype == np.float64
    assert np.isnan(found[2])
    living = found[[0, 1, 3, 4]]
    assert (living >= declared.low - 1e-12).all()
    assert (living <= declared.high + 1e-12).all()
    np.testing.assert_allclose(declared.score(a * 8 - 32), found, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(declared.score(a[:, ::-1])[::-1], found, rtol=1e-9)


@pytest.mark.parametrize("name", [n for n in SCORES if n not in ("selectivity_index",)])
def test_the_order_of_images_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = activations()
    a[:, 3] += np.linspace(0, 1e-3, N)  # ties go to the earlier image
    before = SCORES[name].score(a)
    order = np.random.default_rng(2).permutation(N)
    monkeypatch.setitem(globals(), "EMBEDDINGS", EMBEDDINGS[order])
    monkeypatch.setitem(globals(), "LABELS", LABELS[order])
    tolerance = 0.2 if name == "two_centre_polysemanticity" else 1e-9  # k-means starts at random
    np.testing.assert_allclose(SCORES[name].score(a[order]), before, rtol=tolerance, atol=1e-9)


def test_monosemanticity_equals_its_definition() -> None:
    a = activations()
    found = monosemanticity.monosemanticity_score(a, EMBEDDINGS)
    e = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    for unit in (0, 1, 3, 4):
        s = (a[:, unit] - a[:, unit].min()) / np.ptp(a[:, unit])
        above = below = 0.0
        for i in range(N):
            for j in range(i + 1, N):
                above += s[i] * s[j] * float(e[i] @ e[j])
                below += s[i] * s[j]
        assert found[unit] == pytest.approx(above / below, abs=1e-12)


def test_monosemanticity_error_is_what_a_bootstrap_tends_to() -> None:
    rng = np.random.default_rng(3)
    n = 400
    e = rng.normal(0.5, 1, (n, DIM))
    a = rng.gamma(1, size=(n, 4)) + np.maximum(e[:, :4], 0)
    error = monosemanticity.monosemanticity_error(a, e)
    directions = monosemanticity.unit_length(e)
    s = (a - a.min(0)) / np.ptp(a, axis=0)
    drawn = []
    for w in rng.poisson(1, (600, n)):
        ws = w[:, None] * s
        squares = (ws**2).sum(0)
        drawn.append((((ws.T @ directions) ** 2).sum(1) - squares) / (ws.sum(0) ** 2 - squares))
    np.testing.assert_allclose(np.std(drawn, axis=0), error, rtol=0.12)


def test_a_unit_of_one_image_has_no_monosemanticity() -> None:
    a = np.zeros((5, 1))
    a[2] = 3
    assert np.isnan(monosemanticity.monosemanticity_score(a, EMBEDDINGS[:5])).all()


def test_sparsities_at_their_ends() -> None:
    one, even = np.zeros((100, 1)), np.ones((100, 1))
    one[3], even[3] = 1, 0
    assert excitation.hoyer_sparsity(one) == pytest.approx(1)
    assert excitation.treves_rolls_sparsity(one) == pytest.approx(0.99)
    assert excitation.gini_index(one) == pytest.approx(0.99)
    assert excitation.near_max_share(even) == pytest.approx(0.99)
    assert excitation.half_mass_share(one) == pytest.approx(0.01)
    assert excitation.half_mass_share(even) == pytest.approx(0.5)
    for score in (
        excitation.hoyer_sparsity,
        excitation.treves_rolls_sparsity,
        excitation.gini_index,
    ):
        assert score(even) == pytest.approx(0.01, abs=0.01)


def test_tail_ratio_of_known_distributions() -> None:
    normal = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
    exact = scipy.stats.norm.ppf(0.999) / (2 * scipy.stats.norm.ppf(0.75))
    assert excitation.tail_ratio(normal) == pytest.approx(exact, rel=0.01)
    rare = np.zeros((1000, 1))
    rare[:10] = 1
    assert excitation.tail_ratio(rare)[0] == np.inf
    rarer = np.zeros((2000, 1))
    rarer[0] = 1  # beyond the quantile, so that all four are one value
    assert excitation.tail_ratio(rarer)[0] == np.inf


def test_excess_kurtosis_and_gini_equal_others() -> None:
    a = activations()[:, [0, 1, 4]]
    np.testing.assert_allclose(excitation.excess_kurtosis(a), scipy.stats.kurtosis(a))
    s = a - a.min(0)
    exact = np.abs(s[:, None] - s[None]).sum((0, 1)) / (2 * N * s.sum(0))
    np.testing.assert_allclose(excitation.gini_index(a), exact)


def test_selectivity_at_its_ends() -> None:
    a = np.stack([LABELS == 1, np.tile([0, 0, 0, 1, 1, 1], 10)], axis=1).astype(float)
    found = means(a)
    np.testing.assert_allclose(selectivity.selectivity_index(found), [1, 0])
    np.testing.assert_allclose(selectivity.effective_classes(found), [1, CLASSES])
    aurocs = selectivity.class_aurocs(a, LABELS)
    np.testing.assert_allclose(aurocs[:, 0], [0.25, 1, 0.25])
    np.testing.assert_allclose(aurocs[:, 1], 0.5)


def test_class_means_count_classes_alike() -> None:
    labels = np.array([0, 0, 0, 2])
    found = selectivity.class_means(np.array([[0.0], [1], [2], [4]]), labels)
    np.testing.assert_allclose(found[:, 0], [0.25, 1])  # classes that occur, ascending


def test_aurocs_equal_the_probability_and_survive_large_values() -> None:
    a = activations() * 1e6
    found = selectivity.class_aurocs(a, LABELS)
    for c in range(CLASSES):
        inside, outside = a[c == LABELS], a[c != LABELS]
        wins = (inside[:, None] > outside[None]).mean((0, 1))
        ties = (inside[:, None] == outside[None]).mean((0, 1))
        exact = np.where(np.arange(UNITS) == 2, np.nan, wins + ties / 2)
        np.testing.assert_allclose(found[c], exact)


def test_one_class_leaves_selectivity_missing() -> None:
    a, one = activations(), np.zeros(N, dtype=int)
    assert np.isnan(selectivity.selectivity_index(selectivity.class_means(a, one))).all()
    assert np.isnan(selectivity.effective_classes(selectivity.class_means(a, one))).all()
    assert np.isnan(selectivity.class_aurocs(a, one)).all()


def test_clarity_is_the_mean_cosine_and_leaves_missing_exemplars_out() -> None:
    found = exemplars(activations())
    found[0, 5:] = np.nan
    e = found[0, :5] / np.linalg.norm(found[0, :5], axis=1, keepdims=True)
    exact = np.mean([e[i] @ e[j] for i in range(5) for j in range(5) if i != j])
    assert peer_scores.clarity_score(found)[0] == pytest.approx(exact)
    found[1, 1:] = np.nan  # a single exemplar
    assert np.isnan(peer_scores.clarity_score(found)[1])


def test_two_centres_that_are_opposite_reach_two() -> None:
    one = np.array([[1.0, 0.1], [1, -0.1], [1, 0], [-1, 0.1], [-1, -0.1], [-1, 0]])
    assert peer_scores.two_centre_polysemanticity(one[None]) == pytest.approx(2)
    lone = np.array([[1.0, 0], [1, 0.01], [1, -0.01], [-9, 0]])  # a cluster of one exemplar
    mean = lone.mean(0) / np.linalg.norm(lone.mean(0))
    cosines = lone / np.linalg.norm(lone, axis=1, keepdims=True) @ mean
    found = peer_scores.two_centre_polysemanticity(lone[None])
    assert found == pytest.approx((1 - cosines).mean())
    assert np.isnan(peer_scores.two_centre_polysemanticity(np.ones((1, 4, 2)))).all()


def test_redundancy_finds_the_twin() -> None:
    found = exemplars(activations())
    twins = np.concatenate([found, found[:1] * 3])
    score = peer_scores.redundancy_score(twins)
    assert score[0] == pytest.approx(1)
    assert score[5] == pytest.approx(1)
    assert np.isnan(score[2])
    assert np.isnan(peer_scores.redundancy_score(found[:1])).all()


def test_facet_distances() -> None:
    e = np.array([[0.0, 0], [0, 2], [3, 0], [3, 2]])
    within, across = peer_scores.facet_distances(e, np.array([0, 0, 1, 1]))
    assert within == pytest.approx(2)
    assert across == pytest.approx((3 + 3 + 2 * np.sqrt(13)) / 4)
    within, across = peer_scores.facet_distances(e, np.zeros(4, int))
    assert np.isnan(across)
