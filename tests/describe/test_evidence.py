"""Evidence for names: calibrated where there is nothing, strong where there is something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from polysem.describe.evidence import faithfulness, false_discovery_rates, null_scores, p_values
from polysem.describe.similarity import auroc, best_concepts, soft_wpmi, top_images
from polysem.describe.view import View


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_meaning_p_values_are_uniform_and_names_rare() -> None:
    view = View(drawn(300, 8, seed=0), drawn(60, 8, seed=1))
    activations = drawn(300, 400, seed=2).exp()  # unrelated to what the images show
    exemplars = top_images(activations, 12)
    exemplars[::3, 5:] = -1  # some units fire on few images
    best, _ = best_concepts(soft_wpmi(exemplars, view), view, 1)
    null = null_scores(
        lambda some: soft_wpmi(some, view), exemplars, view, image_axis=None, n_draws=1000
    )
    p = p_values(best[:, 0], null)
    assert kstest(p, "uniform").pvalue > 0.01
    assert (false_discovery_rates(p) <= 0.05).mean() <= 0.05


def test_the_same_for_scores_of_activations() -> None:
    view = View(drawn(200, 8, seed=3), drawn(40, 8, seed=4))
    activations = drawn(200, 300, seed=5).exp()
    best, _ = best_concepts(auroc(activations, view), view, 1)
    null = null_scores(lambda some: auroc(some, view), activations, view, image_axis=0, n_draws=600)
    assert kstest(p_values(best[:, 0], null), "uniform").pvalue > 0.01


def test_units_that_follow_a_concept_stand_out_among_those_that_do_not() -> None:
    view = View(drawn(400, 8, seed=6), drawn(30, 8, seed=7))
    activations = drawn(400, 40, seed=8)
    activations[:, :10] = torch.relu(view.similarity(slice(0, 10)))
    exemplars = top_images(activations, 20)
    best, concepts = best_concepts(soft_wpmi(exemplars, view), view, 1)
    null = null_scores(
        lambda some: soft_wpmi(some, view), exemplars, view, image_axis=None, n_draws=1000
    )
    called = false_discovery_rates(p_values(best[:, 0], null)) <= 0.05
    assert called[:10].all()
    assert concepts[:10, 0].tolist() == list(range(10))
    assert called[10:].mean() <= 0.1


def test_null_draws_keep_how_many_exemplars_units_have_and_repeat_none() -> None:
    view = View(drawn(9, 4, seed=0), drawn(3, 4, seed=1))
    exemplars = torch.tensor([[4, 2, -1], [5, -1, -1]])
    seen: list[Tensor] = []

    def method(some: Tensor):  # type: ignore[no-untyped-def]
        seen.append(some)
        return soft_wpmi(some, view)

    null_scores(method, exemplars, view, image_axis=None, n_draws=50)
    for row in seen[0]:
        there = row[row >= 0]
        assert len(there) in (1, 2)
        assert len(set(there.tolist())) == len(there)


def test_p_values_count_ties_and_leave_out_what_is_not_there() -> None:
    null = [1.0, 2.0, 2.0, np.nan]
    np.testing.assert_allclose(p_values([0.5, 2.0, 2.5, np.nan], null), [1.0, 0.75, 0.25, np.nan])


def test_faithfulness_is_auroc_and_spearman_of_the_held_out_images() -> None:
    n_images, n_units = 60, 4
    images = torch.nn.functional.normalize(drawn(n_images, 5, seed=0), dim=1)
    texts = torch.nn.functional.normalize(drawn(n_units, 5, seed=1), dim=1)
    activations = images @ texts.T + 0.3 * drawn(n_images, n_units, seed=2)
    activations[:20, 1] = torch.nan
    activations[:, 2] = 1.5
    activations[2:, 3] = torch.nan
    found = faithfulness(activations, images, texts, top_share=0.1)
    like = (images @ texts.T).numpy()
    for unit, kept in ((0, slice(None)), (1, slice(20, None))):
        fired = activations[kept, unit].numpy()
        top = np.zeros(len(fired), dtype=bool)
        top[np.argsort(-fired)[: int(0.1 * len(fired))]] = True
        expected = roc_auc_score(top, like[kept, unit])
        assert found.auroc[unit] == pytest.approx(expected, abs=1e-12)
        expected = spearmanr(fired, like[kept, unit]).statistic
        assert found.rank_correlation[unit] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(found.auroc[2:]).all()
    assert np.isnan(found.rank_correlation[2:]).all()
