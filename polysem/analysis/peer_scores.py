"""Scores of other toolkits, from their formulas, to be compared with ours on the same units.

They look at a unit's exemplars, the images that excite it most, and treat those alike however
much they excite it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from polysem.analysis.monosemanticity import unit_length
from polysem.analysis.scaling import Floats

__all__ = [
    "clarity_score",
    "facet_distances",
    "redundancy_score",
    "top_exemplars",
    "two_centre_polysemanticity",
]

Scores = npt.NDArray[np.float64]


def top_exemplars(activations: Floats, embeddings: Floats, k: int = 16) -> Floats:
    """Return the embeddings [unit, rank, dim] of the k images that excite each unit most.

    NaN for a constant unit; between equal activations the earlier image comes first.
    """
    order = np.argsort(-activations, axis=0, kind="stable")[:k].T
    found = np.array(embeddings[order], dtype=np.float64)
    found[(activations == activations[:1]).all(0)] = np.nan
    return found


def clarity_score(exemplars: Floats) -> Scores:
    """Return the mean cosine between a unit's exemplars; 1 is best, at least -1 / (ranks - 1).

    ``(‖mean ê‖² - 1/n) n / (n - 1)`` (semanticlens, Dreyer et al. 2025, arXiv 2501.05398). The
    monosemanticity score with equal weights. NaN for units with fewer than two exemplars.

    Parameters
    ----------
    exemplars : float array [unit, rank, dim]
        NaN rows where there is no exemplar.
    """
    directions = unit_length(exemplars)
    there = np.asarray(np.isfinite(directions).all(-1))
    n = np.where(there.sum(1) > 1, there.sum(1), np.nan)
    total = np.where(there[..., None], directions, 0).sum(1)
    return np.asarray(((total**2).sum(-1) / n**2 - 1 / n) * n / (n - 1))


def two_centre_polysemanticity(exemplars: Floats) -> Scores:
    """Return how far apart the centres of two clusters of exemplars point, in [0, 2]; low is best.

    ``1 - cos(c₁, c₂)`` of two k-means clusters of the embeddings as they are; if one holds a
    single exemplar, the mean of ``1 - cos(mean, e_i)`` over the first ten (semanticlens, Dreyer
    et al. 2025, arXiv 2501.05398, whose code seeds k-means with 123). NaN for units with fewer
    than three exemplars or all alike.
    """
    return np.array([_two_centres(unit[np.isfinite(unit).all(-1)]) for unit in exemplars])


def _two_centres(exemplars: Floats) -> float:
    if len(exemplars) < 3 or np.ptp(exemplars, axis=0).max() == 0:
        return float("nan")
    groups = KMeans(2, n_init=10, random_state=123).fit(exemplars)
    if np.bincount(groups.labels_).min() >= 2:
        first, second = unit_length(groups.cluster_centers_)
        return float(1 - first @ second)
    first = exemplars[:10]
    return float((1 - unit_length(first) @ unit_length(exemplars.mean(0))).mean())


def redundancy_score(exemplars: Floats) -> Scores:
    """Return each unit's largest cosine with another unit's mean exemplar, at most 1; low is best.

    The value of one unit of semanticlens's redundancy, which is the mean over units (Dreyer et
    al. 2025, arXiv 2501.05398). NaN for units without exemplars, and for a unit alone.
    """
    there = np.asarray(np.isfinite(exemplars).all(-1))
    n = there.sum(1)[:, None]
    total = np.where(there[..., None], exemplars, 0).sum(1)
    means = unit_length(np.where(n > 0, total / np.maximum(n, 1), np.nan))
    living = np.isfinite(means).all(1)
    found = np.full(len(means), np.nan)
    rows = np.flatnonzero(living)
    if len(rows) < 2:
        return found
    kept = means[rows]
    for some in np.array_split(np.arange(len(rows)), 1 + len(rows) // 2048):
        cosines = kept[some] @ kept.T
        cosines[np.arange(len(some)), some] = -np.inf
        found[rows[some]] = cosines.max(1)
    return found


def facet_distances(exemplars: Floats, groups: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Return the mean distance between exemplars of one group, and of different groups.

    What PURE measures its virtual neurons by: apart they should be alike inside and unlike
    outside, so the first low and the second high (Dreyer et al. 2024, arXiv 2404.06453).
    Euclidean distances of the embeddings as they are; NaN where there is no such pair.

    Parameters
    ----------
    exemplars : float array [rank, dim]
        Of one unit.
    groups : int array [rank]
        Group of each exemplar, from clustering whatever tells how it came about.
    """
    distances = np.linalg.norm(exemplars[:, None] - exemplars[None], axis=-1)
    upper = np.triu(np.ones(distances.shape, dtype=bool), 1)
    same = groups[:, None] == groups[None]
    within, across = distances[upper & same], distances[upper & ~same]
    return (
        float(within.mean()) if within.size else float("nan"),
        float(across.mean()) if across.size else float("nan"),
    )
