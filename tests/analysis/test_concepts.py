import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from polysem.analysis.concepts import concept_aurocs, count_concepts, dissection_iou

RNG = np.random.default_rng(0)
PRESENCE = RNG.random((1200, 10)) < 0.2


def test_aurocs_are_those_of_scikit_learn() -> None:
    activations = RNG.normal(size=(1200, 3)).round(1) + PRESENCE[:, :3]
    found = concept_aurocs(activations, PRESENCE)
    for concept in range(10):
        for unit in range(3):
            expected = roc_auc_score(PRESENCE[:, concept], activations[:, unit])
            assert found[concept, unit] == pytest.approx(expected, abs=1e-12)


def test_aurocs_that_mean_nothing_are_missing() -> None:
    presence = np.column_stack([PRESENCE[:, 0], np.ones(1200, dtype=bool)])
    activations = np.column_stack([np.ones(1200), RNG.normal(size=1200)])
    found = concept_aurocs(activations, presence)
    assert np.isnan(found).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("k", [0, 1, 2, 4, 6])
def test_planted_concepts_are_counted_and_named(k: int) -> None:
    weights = np.linspace(1, 0.6, k)
    activations = PRESENCE[:, :k] @ weights + 0.2 * RNG.normal(size=1200)
    count, chosen = count_concepts(activations[:, None], PRESENCE)
    assert count[0] == k
    assert set(chosen[0][chosen[0] >= 0]) == set(range(k))


def test_company_is_not_counted() -> None:
    presence = PRESENCE.copy()
    presence[:, 1] = np.where(RNG.random(1200) < 0.7, presence[:, 0], presence[:, 1])
    activations = presence[:, :1] + 0.3 * RNG.normal(size=(1200, 1))
    assert concept_aurocs(activations, presence)[1, 0] > 0.7
    count, chosen = count_concepts(activations, presence)
    assert count[0] == 1
    assert chosen[0, 0] == 0


def test_noise_is_rarely_counted() -> None:
    count, _ = count_concepts(RNG.normal(size=(400, 500)), PRESENCE[:400], least=0.5)
    assert (count > 0).mean() < 0.03  # of 1 % asked for


def test_one_step_is_the_permutation_test() -> None:
    presence = PRESENCE[:60, :1]
    activations = RNG.normal(size=(60, 1)) + 0.6 * presence
    ranks = activations[:, 0].argsort().argsort()
    drawn = [ranks[RNG.permutation(60)][presence[:, 0]].sum() for _ in range(4000)]
    share = np.mean(np.array(drawn) >= ranks[presence[:, 0]].sum())
    for alpha, expected in ((share * 3 + 0.01, 1), (share / 3 - 1e-4, 0)):
        if alpha > 0:
            count, _ = count_concepts(activations, presence, alpha=alpha, least=0.5)
            assert count[0] == expected


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100), shift=st.floats(-9, 9))
def test_order_scale_and_offset_change_nothing(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    activations = PRESENCE[:, :3] @ rng.uniform(0, 1, (3, 2)) + 0.3 * rng.normal(size=(1200, 2))
    order = rng.permutation(1200)
    moved = scale * activations[order] + shift
    for score in (concept_aurocs, lambda a, p: count_concepts(a, p)[1]):
        np.testing.assert_allclose(
            score(moved, PRESENCE[order]), score(activations, PRESENCE), rtol=1e-9
        )


def test_iou_is_counted_by_hand() -> None:
    maps = np.zeros((2, 1, 2, 5))
    maps[0, 0, 0, :2] = 1  # the upper tenth of 20 positions
    masks = np.zeros((2, 3, 2, 5), dtype=bool)
    masks[0, 0, 0, :2] = True
    masks[0, 1, 0, 1:4] = True
    found = dissection_iou(maps, masks, share=0.1)
    np.testing.assert_allclose(found[:, 0], [1, 1 / 4, np.nan])
    assert np.isnan(dissection_iou(np.ones_like(maps), masks)).all()
