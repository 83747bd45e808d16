"""Whether a name fits better than chance would have it, and whether it predicts the unit.

Two kinds of evidence. A p-value says how often images drawn at random would have found as good a
name somewhere in the vocabulary; whatever a large vocabulary offers to chance is in it. Held-out
images say whether likeness to the name predicts how much the unit fires on them (CoSy's question,
arXiv 2405.20331, put to real images instead of generated ones).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import false_discovery_control, rankdata
from torch import Tensor

from polysem.describe.scoring import Scorer, best_concepts
from polysem.describe.view import View

__all__ = ["Faithfulness", "faithfulness", "false_discovery_rates", "null_scores", "p_values"]

Floats = npt.NDArray[np.float64]


def null_scores(
    method: Callable[[Tensor], Scorer],
    answers: Tensor,
    view: View,
    *,
    image_axis: int | None,
    n_draws: int = 1000,
    chunk: int = 256,
    seed: int = 0,
) -> Floats:
    """Return the best scores that units get whose images were exchanged at random [draw].

    Each draw takes a unit at random and gives it other images: its activations are dealt to the
    images in a random order. How strongly and how sparsely units fire therefore stays. Exemplars
    are drawn among the images of the view that stand for any image.

    Parameters
    ----------
    method : callable
        From answers to a scorer whose scores of one unit do not depend on other units; a prior
        over the layer would.
    answers : Tensor
        Activations [image, unit], or exemplars [unit, rank] as image indices with -1 for none.
    view : View
    image_axis : int or None
        0 for activations; None for exemplars.
    n_draws, seed : int
    chunk : int
        Concepts at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    n_units = answers.shape[1] if image_axis == 0 else answers.shape[0]
    units = torch.randint(n_units, (n_draws,), generator=generator)
    n_images = view.n_chance
    if image_axis == 0:
        order = torch.rand(n_images, n_draws, generator=generator).argsort(dim=0)
        dealt = answers[:, units.to(answers.device)].gather(0, order.to(answers.device))
    else:
        rows = answers[units.to(answers.device)]
        places = _distinct(n_images, n_draws, rows.shape[1], generator).to(answers.device)
        dealt = torch.where(rows < 0, rows, places)
    best, _ = best_concepts(method(dealt), view, 1, chunk=chunk)
    return best[:, 0].double().cpu().numpy()


def _distinct(n_images: int, n_draws: int, n_ranks: int, generator: torch.Generator) -> Tensor:
    """Return different images for the ranks of each draw [draw, rank], -1 where there are none."""
    rows = [torch.randperm(n_images, generator=generator)[:n_ranks] for _ in range(n_draws)]
    return torch.nn.functional.pad(torch.stack(rows), (0, max(0, n_ranks - n_images)), value=-1)


def p_values(scores: npt.ArrayLike, null: npt.ArrayLike) -> Floats:
    """Return how often chance finds at least as good a score [unit]: ``(1 + n ≥) / (1 + n)``.

    NaN where the score is; scores of a null that are NaN (dead units drawn) do not count.

    >>> p_values([3.0, 0.0, np.nan], [1.0, 2.0, np.nan])
    array([0.33333333, 1.        ,        nan])
    """
    found = np.asarray(scores, dtype=np.float64)
    drawn = np.sort(np.asarray(null, dtype=np.float64))
    drawn = drawn[~np.isnan(drawn)]
    at_least = len(drawn) - np.searchsorted(drawn, found, side="left")
    return np.where(np.isnan(found), np.nan, (1 + at_least) / (1 + len(drawn)))


def false_discovery_rates(p: npt.ArrayLike) -> Floats:
    """Return Benjamini and Hochberg's q: the false discovery rate at which each p is called.

    NaN stays NaN and counts as no test.

    >>> false_discovery_rates([0.01, np.nan, 0.04])
    array([0.02,  nan, 0.04])
    """
    given = np.asarray(p, dtype=np.float64)
    rates = np.full(given.shape, np.nan)
    tested = ~np.isnan(given)
    if tested.any():
        rates[tested] = false_discovery_control(given[tested])
    return rates


@dataclass(frozen=True)
class Faithfulness:
    """How well likeness to a name predicts a unit on images that the name was not found on.

    Attributes
    ----------
    auroc : float array [unit]
        The probability that an image of the unit's top share is more like the name than one below;
        0.5 is chance, 1 best.
    rank_correlation : float array [unit]
        Spearman's, of likeness and activation over all held-out images.
    """

    auroc: Floats
    rank_correlation: Floats


def faithfulness(
    activations: Tensor, images: Tensor, texts: Tensor, *, top_share: float = 0.05
) -> Faithfulness:
    """Measure names on held-out images.

    Parameters
    ----------
    activations : Tensor
        [image, unit]; NaN where an image is not held out for the unit.
    images : Tensor
        Embeddings [image, dim] of length 1.
    texts : Tensor
        Embedding of each unit's name [unit, dim].
    top_share : float
        Share of the held-out images that count as exciting the unit, at least one.

    Returns
    -------
    Faithfulness
        NaN for units that are constant there, or with fewer than three images.
    """
    likeness = (images @ texts.T).double().cpu().numpy()
    fired = activations.double().cpu().numpy()
    held_out = ~np.isnan(fired)
    likeness = np.where(held_out, likeness, np.nan)
    n = held_out.sum(0)
    n_top = np.maximum(1, (top_share * n).astype(int))
    like = rankdata(likeness, axis=0, nan_policy="omit")
    top = rankdata(fired, axis=0, method="ordinal", nan_policy="omit") > n - n_top
    wins = np.where(top, like, 0).sum(0) - n_top * (n_top + 1) / 2
    varies = np.nanmax(fired, axis=0, initial=-np.inf) > np.nanmin(fired, axis=0, initial=np.inf)
    told = (n >= 3) & varies
    pairs = np.where(told, n_top * (n - n_top), np.nan)
    ranks = rankdata(fired, axis=0, nan_policy="omit")
    return Faithfulness(wins / pairs, np.where(told, _correlation(like, ranks), np.nan))


def _correlation(x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation of each column, over the rows where there is a number."""
    there = ~np.isnan(x)
    n = np.maximum(1, there.sum(0))
    x, y = (np.where(there, z - np.where(there, z, 0).sum(0) / n, 0) for z in (x, y))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0)))
