"""Each similarity function against its definition, one unit and one concept at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.nn.functional import cosine_similarity

from polysem.describe import pmi, similarity
from polysem.describe.scoring import Scorer, all_scores, best_concepts, top_images
from polysem.describe.view import View

N_IMAGES, N_UNITS, N_CONCEPTS, DIM = 41, 5, 11, 3


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def activations() -> Tensor:
    return drawn(N_IMAGES, N_UNITS, seed=0)


@pytest.fixture
def view() -> View:
    return View(drawn(N_IMAGES, DIM, seed=1), drawn(N_CONCEPTS, DIM, seed=2))


def cosines(view: View) -> Tensor:
    return cosine_similarity(view.images[:, None], view.texts[None], dim=-1)


def published_pmi(activations: Tensor, chance: Tensor, trust: list[float], weight: float) -> Tensor:
    """CLIP-Dissect's (soft) WPMI in its own steps: gather, log, sum, minus the layer's prior."""
    logs = torch.zeros(activations.shape[1], chance.shape[1], dtype=torch.float64)
    for unit in range(activations.shape[1]):
        order = np.argsort(-activations[:, unit].numpy(), kind="stable")[: len(trust)]
        for image, p in zip(order, trust, strict=True):
            logs[unit] += torch.log(1 + p * (chance[image] - 1) + 1e-7)
    return logs - weight * (torch.logsumexp(logs, 0) - math.log(len(logs)))


@pytest.mark.parametrize("n_ranks", [1, 7, 41])
def test_soft_wpmi_is_the_published_one(activations: Tensor, view: View, n_ranks: int) -> None:
    trust = [0.998 - (j / n_ranks) * 0.028 for j in range(n_ranks)]
    expected = published_pmi(activations, (10 * cosines(view)).softmax(1), trust, 1)
    scorer = pmi.soft_wpmi(top_images(activations, n_ranks), view, prior="layer")
    torch.testing.assert_close(all_scores(scorer, view, chunk=4), expected, rtol=1e-9, atol=1e-9)


def test_the_trust_of_100_exemplars_is_that_of_clip_dissect() -> None:
    seen: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pmi, "_pmi", lambda e, v, trust, **options: seen.extend(trust))
        pmi.soft_wpmi(torch.zeros(1, 100, dtype=torch.int64), None)  # type: ignore[arg-type]
    assert seen[0] == 0.998
    assert seen[99] == pytest.approx(0.97028)


def test_wpmi_is_the_published_one(activations: Tensor, view: View) -> None:
    expected = published_pmi(activations, (2 * cosines(view)).softmax(1), [1.0] * 28, 0.6)
    scorer = pmi.wpmi(top_images(activations, 28), view, prior="layer")
    torch.testing.assert_close(all_scores(scorer, view, chunk=4), expected, rtol=1e-9, atol=1e-9)


def test_the_prior_over_images_is_what_random_exemplars_get(view: View) -> None:
    trust = [0.998, 0.984]
    chance = (10 * cosines(view)).softmax(1)
    expected = sum(torch.log(1 + p * (chance - 1) + 1e-7).mean(0) for p in trust)
    nothing = torch.zeros(N_CONCEPTS, dtype=torch.float64)
    exemplars = torch.cartesian_prod(torch.arange(N_IMAGES), torch.arange(N_IMAGES))
    found = all_scores(pmi.soft_wpmi(exemplars, view), view, chunk=4)
    torch.testing.assert_close(found.mean(0), nothing, rtol=0, atol=1e-9)
    only = all_scores(pmi.soft_wpmi(exemplars[:1], view), view, chunk=4)[0]
    logs = sum(torch.log(1 + p * (chance[0] - 1) + 1e-7) for p in trust)
    torch.testing.assert_close(only, logs - expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_ranks", [13, 100])
def test_many_ranks_are_interpolated_without_loss(view: View, n_ranks: int) -> None:
    trust = [0.998 - j / n_ranks * 0.028 for j in range(n_ranks)]
    chance = torch.cat([(10 * cosines(view)).softmax(1) ** power for power in (0.1, 1, 8)])
    terms = [torch.log(1 + p * (chance - 1) + 1e-7).mean(0) for p in trust]
    expected = torch.stack([torch.zeros_like(terms[0]), *terms]).cumsum(0)
    found = pmi._expected_log_likelihood(chance, trust)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [pmi.soft_wpmi, pmi.wpmi])
def test_only_the_published_prior_depends_on_the_other_units(
    activations: Tensor, view: View, method: Callable[..., Scorer]
) -> None:
    exemplars = top_images(activations, 7)
    for prior, same in (("images", True), ("layer", False)):
        together = all_scores(method(exemplars, view, prior=prior), view)[:2]
        alone = all_scores(method(exemplars[:2], view, prior=prior), view)
        assert torch.allclose(together, alone) is same, prior


def test_cosine_and_its_cube(activations: Tensor, view: View) -> None:
    similarities = cosines(view)
    plain = cosine_similarity(activations.T[:, None], similarities.T[None], dim=-1)
    found = all_scores(similarity.cosine(activations, view), view, chunk=4)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)

    def cubed(column: Tensor) -> Tensor:
        cube = (column - column.mean()) ** 3
        return cube / max(float(cube.norm()), 1e-3)

    expected = torch.tensor(
        [[float(cubed(a) @ cubed(s)) for s in similarities.T] for a in activations.T],
        dtype=torch.float64,
    )
    found = all_scores(similarity.cosine_cubed(activations, view), view, chunk=4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_rank_reorder(activations: Tensor, view: View) -> None:
    n_top = int(0.25 * N_IMAGES)
    signed, view = view, View(view.images.abs(), view.texts.abs())  # mean similarities above 0
    similarities = cosines(view)
    found = all_scores(similarity.rank_reorder(activations, view, top_share=0.25), view, chunk=4)
    generator = torch.Generator().manual_seed(0)
    shuffles = [torch.randperm(n_top, generator=generator) for _ in range(5)]
    for unit in range(N_UNITS):
        top = activations[:, unit].sort(descending=True)
        t, s = top.values[:n_top], top.values[:n_top].flip(0)
        for concept in range(N_CONCEPTS):
            seen = similarities[top.indices[:n_top], concept]
            rank = seen.argsort().argsort()
            chance = np.mean([float((t - t[o]).abs().pow(3).mean()) for o in shuffles])
            error = float((t - s[rank]).abs().pow(3).mean()) / chance
            expected = -error / float(seen.mean()) ** 0.5
            assert float(found[unit, concept]) == pytest.approx(expected, rel=1e-9)
    scorer = similarity.rank_reorder(activations, signed)
    undefined = all_scores(scorer, signed).isnan()
    assert bool(undefined.any())
    _, concepts = best_concepts(scorer, signed, 1)  # never one without a score
    assert not bool(undefined.gather(1, concepts).any())


def test_auroc_counts_wins(activations: Tensor, view: View) -> None:
    activations[::3, 1] = 0.25  # ties
    similarities = cosines(view)
    found = all_scores(similarity.auroc(activations, view, top_share=0.2), view, chunk=4)
    for concept in range(N_CONCEPTS):
        shown = torch.zeros(N_IMAGES, dtype=torch.bool)
        shown[similarities[:, concept].topk(8).indices] = True
        for unit in range(N_UNITS):
            one = activations[:, unit]
            wins = mannwhitneyu(one[shown], one[~shown]).statistic / (8 * (N_IMAGES - 8))
            assert float(found[unit, concept]) == pytest.approx(wins, abs=1e-12)


def test_mean_embedding(activations: Tensor, view: View) -> None:
    exemplars = top_images(activations, 4)
    exemplars[0, 2:] = -1
    mean = torch.stack([view.images[rows[rows >= 0]].mean(0) for rows in exemplars])
    expected = cosine_similarity(mean[:, None], view.texts[None], dim=-1)
    found = all_scores(similarity.mean_embedding(exemplars, view), view)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def named(name: str) -> Callable[..., Scorer]:
    return getattr(pmi if name.endswith("wpmi") else similarity, name)


def of_activations(name: str, activations: Tensor, view: View) -> Scorer:
    method = named(name)
    if name in METHODS[:3]:
        return method(top_images(activations, 6), view)
    return method(activations, view)


METHODS = ["soft_wpmi", "wpmi", "mean_embedding", "cosine", "cosine_cubed", "rank_reorder", "auroc"]


@pytest.mark.parametrize("name", METHODS)
@given(chunk=st.integers(1, N_CONCEPTS + 2), block=st.sampled_from([1, 17, 1 << 18]))
def test_chunks_change_nothing(name: str, chunk: int, block: int) -> None:
    activations = drawn(N_IMAGES, N_UNITS, seed=3)
    view = View(drawn(N_IMAGES, DIM, seed=4).abs(), drawn(N_CONCEPTS, DIM, seed=5).abs())
    scorer = of_activations(name, activations, view)
    whole = all_scores(scorer, view, chunk=N_CONCEPTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pmi, "BLOCK", block)
        patch.setattr(similarity, "BLOCK", block)
        torch.testing.assert_close(all_scores(scorer, view, chunk=chunk), whole)
        scores, concepts = best_concepts(scorer, view, 3, chunk=chunk)
    expected = whole.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(scores, expected.values[:, :3])
    assert torch.equal(concepts, expected.indices[:, :3])


@pytest.mark.parametrize("name", METHODS)
def test_a_constant_unit_has_no_score_and_changes_no_other(name: str) -> None:
    activations = drawn(N_IMAGES, N_UNITS, seed=6)
    view = View(drawn(N_IMAGES, DIM, seed=7).abs(), drawn(N_CONCEPTS, DIM, seed=8).abs())
    whole = all_scores(of_activations(name, activations, view), view)
    activations[:, 2] = 0.7
    found = all_scores(of_activations(name, activations, view), view)
    assert bool(found[2].isnan().all())
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found[others], whole[others])
    scores, _ = best_concepts(of_activations(name, activations, view), view, 2)
    assert bool(scores[2].isnan().all())


@pytest.mark.parametrize("name", METHODS)
def test_a_unit_that_follows_a_concept_is_called_by_it(name: str) -> None:
    view = View(drawn(400, 8, seed=9) + 1, drawn(N_CONCEPTS, 8, seed=10) + 1)
    activations = torch.relu(view.similarity(slice(0, 3)) - 0.5)
    exemplars = top_images(activations, 30)
    scorer = named(name)(exemplars if name in METHODS[:3] else activations, view)
    _, concepts = best_concepts(scorer, view, 1)
    assert concepts[:, 0].tolist() == [0, 1, 2]


def test_missing_exemplars_say_nothing(activations: Tensor, view: View) -> None:
    exemplars = top_images(activations, 6)
    padded = torch.cat([exemplars, torch.full_like(exemplars, -1)], dim=1)
    short = all_scores(pmi.soft_wpmi(exemplars, view, keep=(0.99, 0.99)), view)
    long = all_scores(pmi.soft_wpmi(padded, view, keep=(0.99, 0.99)), view)
    torch.testing.assert_close(long, short, rtol=0, atol=1e-6)


def test_single_precision_is_enough(activations: Tensor, view: View) -> None:
    exemplars = top_images(activations, 41)
    small = View(view.images.float(), view.texts.float())
    found = all_scores(pmi.soft_wpmi(exemplars, small), small)
    expected = all_scores(pmi.soft_wpmi(exemplars, view), view)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [4, 7, 256])
@pytest.mark.parametrize("k", [1, 3, 37, 50])
def test_of_two_that_score_alike_the_earlier_concept_is_best(k: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, 37, generator=generator).round()  # most have equals
    scores[3] = torch.nan
    view = View(torch.randn(5, 6, generator=generator), torch.randn(37, 6, generator=generator))
    _, found = best_concepts(lambda concepts: scores[:, concepts], view, k, chunk=chunk)
    lowest = scores.nan_to_num(-torch.inf, neginf=-torch.inf)
    expected = lowest.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(found, expected)
