"""Pointwise mutual information of concepts and exemplars: CLIP-Dissect's scores, and its default.

Exemplars are image indices [unit, rank], best first, with -1 where there is none.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import BarycentricInterpolator
from torch import Tensor

from polysem.describe.scoring import BLOCK, Scorer
from polysem.describe.view import View

__all__ = ["soft_wpmi", "wpmi"]

#: What keeps logarithms finite, as published.
_EPSILON = 1e-7

#: Points at which an expectation is computed, see `_expected_log_likelihood`.
_NODES = 12


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
            any_image = chance[: view.n_chance]
            expected = _expected_log_likelihood(any_image, trust)[n_exemplars]
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
    for units in torch.arange(len(exemplars)).split(max(1, BLOCK // n_concepts)):
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
