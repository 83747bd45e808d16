"""How well each concept fits each unit: similarity functions from the literature.

A function takes what the units did, and a :class:`~polysem.describe.view.View`; it returns a
scorer, which gives the scores [unit, concept] of a slice of the concepts, so that a vocabulary of
any size is gone through in chunks (`all_scores`, `best_concepts`). Higher is better everywhere,
and NaN is the score of a unit that tells nothing (constant, or without exemplars).

Functions of exemplars take image indices [unit, rank], best first, with -1 where there is none:
`soft_wpmi`, `wpmi`, `mean_embedding`. Crops are described by giving them as the view's images, and
their own indices as exemplars. The others take activations [image, unit].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import torch
from scipy.interpolate import BarycentricInterpolator
from torch import Tensor

from polysem.describe.view import View

__all__ = [
    "Scorer",
    "all_scores",
    "auroc",
    "best_concepts",
    "cosine",
    "cosine_cubed",
    "mean_embedding",
    "rank_reorder",
    "soft_wpmi",
    "top_images",
    "wpmi",
]

#: Gives the scores [unit, concept] of some concepts.
Scorer: TypeAlias = Callable[[slice], Tensor]

#: Numbers held at once while exemplars are gathered: small enough for a CPU's cache.
_BLOCK = 1 << 18

#: What keeps logarithms finite, as published.
_EPSILON = 1e-7

#: Points at which an expectation is computed, see `_expected_log_likelihood`.
_NODES = 12


def best_concepts(scorer: Scorer, view: View, k: int, *, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Return the k best concepts of each unit, without ever holding all scores.

    Returns
    -------
    scores : Tensor
        [unit, rank], best first; NaN for units that tell nothing.
    concepts : int64 Tensor
        [unit, rank], indices of the concepts; the earlier concept where two score alike.
    """
    best: tuple[Tensor, Tensor] | None = None
    for concepts in view.chunks(chunk):
        scores = scorer(concepts)
        scores = scores.masked_fill(scores.isnan(), -torch.inf)  # sorted last, not first
        numbers = torch.arange(concepts.start, concepts.stop, device=scores.device)
        numbers = numbers.expand(len(scores), -1)
        if best is not None:
            scores = torch.cat([best[0], scores], dim=1)
            numbers = torch.cat([best[1], numbers], dim=1)
        # stable, so that ties go to the concept that comes first whatever the chunks
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        best = scores[:, :k], numbers.gather(1, order[:, :k])
    assert best is not None
    scores, numbers = best
    return scores.masked_fill(scores == -torch.inf, torch.nan), numbers


def all_scores(scorer: Scorer, view: View, *, chunk: int = 256) -> Tensor:
    """Return the scores [unit, concept] of the whole vocabulary at once."""
    return torch.cat([scorer(concepts) for concepts in view.chunks(chunk)], dim=1)


def top_images(activations: Tensor, k: int) -> Tensor:
    """Return the images that excite each unit most [unit, rank], -1 for constant units."""
    order = activations.T.contiguous().topk(min(k, len(activations)), dim=1).indices
    constant = (activations == activations[:1]).all(dim=0)
    return torch.where(constant[:, None], -1, order)


def soft_wpmi(
    exemplars: Tensor,
    view: View,
    *,
    scale: float = 10,
    weight: float = 1,
    keep: tuple[float, float] = (0.998, 0.97),
    prior: Literal["layer", "images"] = "images",
) -> Scorer:
    """Score by the pointwise mutual information of concept and exemplars, each trusted in part.

    With P the softmax over concepts of ``scale · cos`` and p_j the trust in exemplar j, falling
    evenly with the rank,

        L_uc = Σ_j log(1 + p_j (P_jc − 1) + 10⁻⁷),    score = L_uc − weight · prior_c.

    Parameters
    ----------
    exemplars : int64 Tensor
        [unit, rank]; CLIP-Dissect takes 100 ranks.
    view : View
    scale, weight : float
        CLIP-Dissect's a and λ.
    keep : (float, float)
        p of the first rank, and the value that one rank beyond the last would have.
    prior : {"images", "layer"}
        What concept c gets from anything. ``layer`` is the published form, the log of the mean
        over units of exp(L_uc): a unit's scores then depend on which units are scored with it.
        ``images``, what exemplars drawn at random from the images get on average, does not.

    References
    ----------
    Oikarinen and Weng 2023, CLIP-Dissect, arXiv 2204.10965.
    """
    n_ranks = exemplars.shape[1]
    fall = (keep[0] - keep[1]) / max(1, n_ranks)
    trust = [keep[0] - fall * rank for rank in range(n_ranks)]
    return _pmi(exemplars, view, trust, scale=scale, weight=weight, prior=prior)


def wpmi(
    exemplars: Tensor,
    view: View,
    *,
    scale: float = 2,
    weight: float = 0.6,
    prior: Literal["layer", "images"] = "images",
) -> Scorer:
    """Score by the pointwise mutual information of concept and exemplars, all trusted in full.

    `soft_wpmi` with p_j = 1; CLIP-Dissect takes 28 ranks. Parameters as there.

    References
    ----------
    Oikarinen and Weng 2023, CLIP-Dissect, arXiv 2204.10965.
    """
    trust = [1.0] * exemplars.shape[1]
    return _pmi(exemplars, view, trust, scale=scale, weight=weight, prior=prior)


def _pmi(
    exemplars: Tensor,
    view: View,
    trust: list[float],
    *,
    scale: float,
    weight: float,
    prior: Literal["layer", "images"],
) -> Scorer:
    n_exemplars = (exemplars >= 0).sum(dim=1)
    nothing = n_exemplars == 0
    n_living = int((~nothing).sum())

    def score(concepts: slice) -> Tensor:
        chance = view.probability(concepts, scale=scale)
        found = _log_likelihood(chance, exemplars, trust)
        if prior == "layer":
            expected = found[~nothing].logsumexp(0) - math.log(max(1, n_living))
        else:
            expected = _expected_log_likelihood(chance, trust)[n_exemplars]
        return (found - weight * expected).masked_fill_(nothing[:, None], torch.nan)

    return score


def _log_likelihood(chance: Tensor, exemplars: Tensor, trust: list[float]) -> Tensor:
    """Return ``Σ_j log(1 + p_j (P_jc − 1) + ε)`` [unit, concept] over each unit's exemplars.

    Sums of logs are taken as logs of products, as long as these stay in the range of the type:
    a logarithm costs more than ten multiplications.
    """
    n_concepts = chance.shape[1]
    # one more row of ones: what a missing exemplar says, log(1 + ε), is next to nothing
    table = torch.cat([chance, torch.ones_like(chance[:1])])
    floors = [1 - p + _EPSILON for p in trust]
    total = torch.zeros(len(exemplars), n_concepts).to(chance)
    for units in torch.arange(len(exemplars)).split(max(1, _BLOCK // n_concepts)):
        rows = exemplars[units].T.contiguous()
        rows = torch.where(rows < 0, len(chance), rows)
        product = torch.ones(len(units), n_concepts).to(chance)
        for group in _groups(floors, chance.dtype):
            for rank in group:
                factor = table.index_select(0, rows[rank])
                product.mul_(factor.mul_(trust[rank]).add_(floors[rank]))
            total[units] += product.log_()
            product = product.fill_(1)
    return total


def _groups(floors: list[float], dtype: torch.dtype) -> list[list[int]]:
    """Return ranks in runs whose product, each factor at its floor, the type can still hold."""
    room = -math.log(torch.finfo(dtype).tiny) - 5
    groups: list[list[int]] = [[]]
    used = 0.0
    for rank, floor in enumerate(floors):
        if used - math.log(floor) > room:
            groups.append([])
            used = 0.0
        groups[-1].append(rank)
        used -= math.log(floor)
    return groups


def _expected_log_likelihood(chance: Tensor, trust: list[float]) -> Tensor:
    """Return what 0, 1, … exemplars drawn at random would give on average [number, concept].

    The mean over images of ``log(1 + p (P − 1) + ε)`` is smooth in ``log(1 − p + ε)``, so that it
    is computed at a dozen p and interpolated between (the singularities lie π away from the real
    axis, which leaves an error of 10⁻⁸ at the trust of `soft_wpmi`).
    """
    place = np.log([1 - p + _EPSILON for p in trust])
    nodes = np.unique(place)
    if len(nodes) > _NODES:
        middle, half = (nodes[0] + nodes[-1]) / 2, (nodes[-1] - nodes[0]) / 2
        nodes = middle + half * np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    if len(nodes) == 1:
        weights = np.ones((len(trust), 1))
    else:
        weights = BarycentricInterpolator(nodes, np.eye(len(nodes)))(place)  # [rank, node]
    at_nodes = torch.stack([
        (chance * (1 - math.exp(t) + _EPSILON) + math.exp(t)).log_().mean(0) for t in nodes
    ]).double()  # fmt: skip
    by_rank = torch.from_numpy(weights).to(at_nodes) @ at_nodes
    return torch.cat([torch.zeros_like(by_rank[:1]), by_rank.cumsum(0)]).to(chance)


def mean_embedding(exemplars: Tensor, view: View) -> Scorer:
    """Score by the cosine between concept and the mean embedding of a unit's exemplars.

    In [−1, 1]. semanticlens leaves the embedding of an empty prompt out of each concept, which is
    up to whoever embeds the texts.

    References
    ----------
    Dreyer et al. 2025, semanticlens, arXiv 2501.05398.
    """
    means = []
    for rows in exemplars.split(1024):
        there = (rows >= 0)[..., None]
        total = (view.images[rows.clamp(min=0)] * there).sum(1)
        means.append(total / torch.linalg.vector_norm(total, dim=1, keepdim=True))  # 0/0 is NaN
    mean = torch.cat(means)
    return lambda concepts: mean @ view.texts[concepts].T


def cosine(activations: Tensor, view: View) -> Scorer:
    """Score by the cosine over images between activations and similarities, both as they are.

    In [−1, 1].

    References
    ----------
    A baseline of Oikarinen and Weng 2023, CLIP-Dissect, arXiv 2204.10965.
    """
    unit = _known(activations)
    unit = unit / torch.linalg.vector_norm(unit, dim=0)

    def score(concepts: slice) -> Tensor:
        similarity = view.similarity(concepts)
        cosines: Tensor = unit.T @ (similarity / torch.linalg.vector_norm(similarity, dim=0))
        return cosines

    return score


def cosine_cubed(activations: Tensor, view: View, *, least: float = 1e-3) -> Scorer:
    """Score by the cosine over images between cubed activations and cubed similarities.

    Both are centred over the images first, and no norm counts as less than `least`. The cube makes
    the few images that excite a unit most count. In [−1, 1].

    References
    ----------
    Oikarinen and Weng 2023, CLIP-Dissect, arXiv 2204.10965.
    """
    unit = _cubed(_known(activations), least)
    return lambda concepts: unit.T @ _cubed(view.similarity(concepts), least)


def _cubed(columns: Tensor, least: float) -> Tensor:
    cubed: Tensor = (columns - columns.mean(0)) ** 3
    unit: Tensor = cubed / torch.linalg.vector_norm(cubed, dim=0).clamp(min=least)
    return unit


def rank_reorder(
    activations: Tensor,
    view: View,
    *,
    power: float = 3,
    top_share: float = 0.05,
    scale_power: float = 0.5,
    n_shuffles: int = 5,
    seed: int = 0,
) -> Scorer:
    """Score by how well a concept's similarities put a unit's top activations in order.

    With t a unit's top activations and t' the same sorted by the concept's similarity,

        score = − mean|t − t'|ᵖ / mean|t − shuffled t|ᵖ / (mean similarity)^scale_power.

    At most 0, best 0; NaN where the mean similarity of a concept is not above 0.

    References
    ----------
    Oikarinen and Weng 2023, CLIP-Dissect, arXiv 2204.10965; its shuffles have no seed, ours do.
    """
    n_top = max(2, int(top_share * len(activations)))
    known = _known(activations)
    top = known.sort(dim=0, descending=True, stable=True)
    values, images = top.values[:n_top].T, top.indices[:n_top].T  # [unit, rank]
    generator = torch.Generator().manual_seed(seed)
    shuffles = [torch.randperm(n_top, generator=generator) for _ in range(n_shuffles)]
    chance = torch.stack([
        (values - values[:, order]).abs().pow(power).mean(1) for order in shuffles
    ]).mean(0)  # fmt: skip

    def score(concepts: slice) -> Tensor:
        similarity = view.similarity(concepts)
        found = []
        for units in torch.arange(len(values)).split(max(1, _BLOCK // similarity.shape[1])):
            seen = similarity[images[units]]  # [unit, rank, concept]
            place = seen.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            sorted_by = values[units].unsqueeze(-1).expand_as(place).gather(1, place)
            error = (values[units].unsqueeze(-1) - sorted_by).abs().pow(power).mean(1)
            found.append(-error / chance[units, None] / seen.mean(1).pow(scale_power))
        return torch.cat(found)

    return score


def auroc(activations: Tensor, view: View, *, top_share: float = 0.05) -> Scorer:
    """Score by how well a unit tells the images that show a concept most from all others.

    The probability that an image among the `top_share` most similar to the concept excites the
    unit more than one that is not, ties counting half; 0.5 is chance, 1 is best. INVERT's score,
    with the encoder's word for where a concept is instead of labels.

    References
    ----------
    Bykov et al. 2023, INVERT, arXiv 2311.13594.
    """
    n_images = len(activations)
    n_top = min(max(1, int(top_share * n_images)), n_images - 1)
    ranks = _mean_ranks(_known(activations))

    def score(concepts: slice) -> Tensor:
        similarity = view.similarity(concepts)
        shown = torch.zeros_like(similarity)
        shown.scatter_(0, similarity.topk(n_top, dim=0).indices, 1.0)
        wins = ranks.T @ shown - n_top * (n_top + 1) / 2
        return wins / (n_top * (n_images - n_top))

    return score


def _mean_ranks(columns: Tensor) -> Tensor:
    """Return the rank of each value in its column, from 1; equal values share their mean rank."""
    ordered = columns.sort(dim=0).values
    ordered, rows = ordered.T.contiguous(), columns.T.contiguous()
    first = torch.searchsorted(ordered, rows, side="left")
    last = torch.searchsorted(ordered, rows, side="right")
    ranks = ((first + last + 1).to(columns) / 2).T
    return torch.where(columns.isnan(), torch.nan, ranks)


def _known(activations: Tensor) -> Tensor:
    """Return activations with NaN in place of constant units."""
    constant = (activations == activations[:1]).all(dim=0)
    return activations.masked_fill(constant, torch.nan)
