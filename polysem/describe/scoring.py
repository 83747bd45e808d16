"""Scores of a vocabulary of any size, a few concepts at a time.

A similarity function takes what the units did, and a :class:`~polysem.describe.view.View`; it
returns a scorer, which gives the scores [unit, concept] of a slice of the concepts. Higher is
better everywhere, and NaN is the score of a unit that tells nothing (constant, or without
exemplars).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from polysem.describe.view import View

__all__ = ["BLOCK", "Scorer", "all_scores", "best_concepts", "top_images"]

#: Gives the scores [unit, concept] of some concepts.
Scorer: TypeAlias = Callable[[slice], Tensor]

#: Numbers held at once while exemplars are gathered: small enough for a CPU's cache.
BLOCK = 1 << 18


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
        order = _first_best(scores, k)
        best = scores.gather(1, order), numbers.gather(1, order)
    assert best is not None
    scores, numbers = best
    return scores.masked_fill(scores == -torch.inf, torch.nan), numbers


def _first_best(scores: Tensor, k: int) -> Tensor:
    """Return the places of the k best scores of each row, the earlier first of two alike."""
    best, order = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    if bool(tied.any()):  # only then does it matter which comes first: a sort, which costs more
        again = scores[tied].sort(dim=1, descending=True, stable=True).indices
        order[tied] = again[:, : order.shape[1]]
    return order[:, :k]


def all_scores(scorer: Scorer, view: View, *, chunk: int = 256) -> Tensor:
    """Return the scores [unit, concept] of the whole vocabulary at once."""
    return torch.cat([scorer(concepts) for concepts in view.chunks(chunk)], dim=1)


def top_images(activations: Tensor, k: int) -> Tensor:
    """Return the images that excite each unit most [unit, rank], -1 for constant units."""
    order = activations.T.contiguous().topk(min(k, len(activations)), dim=1).indices
    constant = (activations == activations[:1]).all(dim=0)
    return torch.where(constant[:, None], -1, order)
