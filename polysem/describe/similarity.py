"""How well each concept fits each unit: similarity functions from the literature; see also `pmi`.

Functions of exemplars take image indices [unit, rank], best first, with -1 where there is none:
`mean_embedding`, and those of `pmi`. Crops are described by giving them as the view's images, and
their own indices as exemplars. The others take activations [image, unit].
"""

from __future__ import annotations

import torch
from torch import Tensor

from polysem.describe.scoring import BLOCK, Scorer
from polysem.describe.view import View

__all__ = ["auroc", "cosine", "cosine_cubed", "mean_embedding", "rank_reorder"]


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
    n_top = min(max(2, int(top_share * len(activations))), len(activations))
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
        for units in torch.arange(len(values)).split(max(1, BLOCK // similarity.shape[1])):
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
