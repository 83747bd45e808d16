"""Facets: the groups that a unit's exemplars fall into, and whether they are more than one blob.

All units are clustered at once: what k-means needs of n exemplars are their coordinates on a few
principal axes, whatever the dimension of the embeddings. For k groups these are the first k - 1
axes, which hold all that lies between k centres.

The null is exact. Of a normal blob, whatever its covariance and dimension, the scores on the
principal axes are a uniformly random frame times the singular values. So the tightness of a
unit's groups is held against the same clustering of random frames with the unit's own singular
values: a blob has no way to look special, however stretched it is.

Where few of the coordinates are large at a time, as in what upstream units contribute, single
exemplars stand far out and no blob is a fair null. `shuffled` keeps how each coordinate is spread,
and takes away that coordinates go together; it tells whether there are facets, and blobs how many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from polysem.analysis.k_means import adjusted_rand, k_means, silhouette
from polysem.analysis.scaling import Floats

__all__ = ["Facets", "Null", "blobs", "find_facets", "shuffled"]

#: From exemplars [unit, rank, dim], their frames [unit, rank, axis] and singular values [unit,
#: axis], a random frame and singular values like these of exemplars without facets.
Null: TypeAlias = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]

#: Numbers of an array of exemplars held at once, so that memory does not grow with the units.
_AT_ONCE = 1 << 23
#: A unit has facets if its groups are tighter than those of blobs by so many standard deviations.
_DEVIATIONS = 4.0
#: Starts of k-means: few where blobs are compared, which get the same; more for what is kept.
_QUICK, _CAREFUL = 1, 6


@dataclass(frozen=True)
class Facets:
    """The facets of some units.

    Attributes
    ----------
    count : int64 array [unit]
        Number of facets: 1 where the exemplars are one blob, 0 where there are none.
    group : int64 array [unit, rank]
        Facet of each exemplar, the one with most exemplars first; -1 where there is none.
    silhouette : float64 array [unit]
        Of the division on its principal axes, in [-1, 1]; NaN where there is one facet.
    excess : float64 array [unit]
        By how many standard deviations the tightest division is tighter than that of blobs; NaN
        for units of fewer than six exemplars, or all alike.
    stability : float64 array [unit]
        Mean adjusted Rand index with the division of resampled exemplars, 1 if it is always the
        same and 0 if it is chance; NaN where there is one facet.
    """

    count: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    silhouette: npt.NDArray[np.float64]
    excess: npt.NDArray[np.float64]
    stability: npt.NDArray[np.float64]


def blobs(
    _points: Tensor, frame: Tensor, spread: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw normal blobs, stretched like the exemplars."""
    draw = torch.randn(*frame.shape[1:], generator=generator)
    random_frame = torch.linalg.qr(draw - draw.mean(0))[0]
    return random_frame.expand(len(frame), -1, -1), spread


def shuffled(
    points: Tensor, frame: Tensor, _spread: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shuffle each coordinate among the exemplars, the same way for all units."""
    order = torch.rand(points.shape[1:], generator=generator).argsort(0)
    again, spread, _ = _principal_scores(points.gather(1, order.expand_as(points)), frame.shape[2])
    return again, spread


def find_facets(
    exemplars: Floats,
    *,
    null: Null = blobs,
    most: int = 5,
    n_blobs: int = 32,
    n_resamples: int = 10,
    seed: int = 0,
) -> Facets:
    """Divide every unit's exemplars into facets, if they are more than one blob.

    Parameters
    ----------
    exemplars : float array [unit, rank, dim]
        Embeddings of each unit's exemplars; NaN rows where there is none. Distances are
        Euclidean: scale embeddings to length 1 first if only directions should count.
    null : callable, default blobs
        What tells whether there is more than one facet; `shuffled` for vectors with few large
        coordinates. How many there are, blobs tell.
    most : int
        Facets looked for at most, and no more than a third of the exemplars.
    n_blobs : int
        Blobs, or shuffles, that each unit's divisions are held against.
    n_resamples : int
        Resamples behind the stability.
    seed : int
        Of blobs and resamples.

    Returns
    -------
    Facets

    References
    ----------
    Tibshirani, Walther, Hastie 2001 (the gap of log tightness from a null); Liu et al. 2008
    (SigClust, a normal null from eigenvalues); Hennig 2007 (stability by resampling).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> blob = rng.normal(size=(1, 16, 8))
    >>> apart = blob + np.where(np.arange(16) < 6, 9, 0)[:, None]
    >>> find_facets(np.concatenate([blob, apart])).count
    array([1, 2])
    """
    n_units, n_ranks, n_dims = exemplars.shape
    found = Facets(
        np.zeros(n_units, dtype=np.int64),
        np.full((n_units, n_ranks), -1, dtype=np.int64),
        *(np.full(n_units, np.nan) for _ in range(3)),
    )
    there = np.asarray(np.isfinite(exemplars).all(-1))
    size = max(1, _AT_ONCE // max(1, n_ranks * n_dims))
    for n_there in np.unique(there.sum(1)):
        # units with equally many exemplars go together: nothing need be masked
        alike = np.flatnonzero(there.sum(1) == n_there)
        for rows in np.array_split(alike, -(-len(alike) // size)):
            points = exemplars[rows][there[rows]].reshape(len(rows), n_there, n_dims)
            generator = torch.Generator().manual_seed(seed)
            part = _facets_of(
                torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)),
                null,
                min(most, n_there // 3),
                n_blobs,
                n_resamples,
                generator,
            )
            groups = np.full((len(rows), n_ranks), -1, dtype=np.int64)
            groups[there[rows]] = part.group.ravel()
            found.group[rows] = groups
            for name in ("count", "silhouette", "excess", "stability"):
                getattr(found, name)[rows] = getattr(part, name)
    return found


def _facets_of(
    points: Tensor,
    null: Null,
    most: int,
    n_blobs: int,
    n_resamples: int,
    generator: torch.Generator,
) -> Facets:
    """Return the facets of units that all have the same number of exemplars [unit, rank, dim]."""
    n_units, n_points = points.shape[:2]
    count = torch.full((n_units,), min(1, n_points))
    group = torch.zeros(n_units, n_points, dtype=torch.int64)
    score, excess, stability = (torch.full((n_units,), torch.nan) for _ in range(3))
    rows = torch.zeros(0, dtype=torch.int64)
    if most >= 2:
        frame, spread, varied = _principal_scores(points, most - 1)
        rows = varied.nonzero()[:, 0]
    if len(rows):
        frame, spread = frame[rows], spread[rows]
        gap = _gaps(blobs, points[rows], frame, spread, most, n_blobs, generator)
        excess[rows], best = gap.max(0)
        if null is not blobs:  # which tells whether there are facets, and blobs how many
            other = _gaps(null, points[rows], frame, spread, most, n_blobs, generator)
            excess[rows] = other.max(0).values
        for k in range(2, most + 1):
            mine = (excess[rows] > _DEVIATIONS) & (best == k - 2)
            if not bool(mine.any()):
                continue
            coordinates = (frame * spread[:, None])[mine, :, : k - 1]
            groups = _by_size(k_means(coordinates, k, starts=_CAREFUL)[0], k)
            here = rows[mine]
            count[here], group[here] = k, groups
            score[here] = silhouette(coordinates, groups, k)
            stability[here] = _stability(coordinates, groups, k, n_resamples, generator)
    return Facets(
        count.numpy(), group.numpy(), *(x.double().numpy() for x in (score, excess, stability))
    )


def _principal_scores(points: Tensor, n_axes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames [unit, rank, axis], singular values [unit, axis], and which units vary."""
    off = points - points.mean(1, keepdim=True)
    squares, frame = torch.linalg.eigh(off @ off.mT)
    spread = squares.clamp(min=0).sqrt()
    varied = spread[:, -1] > 1e-4 * points.square().sum((1, 2)).sqrt()
    return frame[:, :, -n_axes:].flip(2), spread[:, -n_axes:].flip(1), varied


def _gaps(
    null: Null,
    points: Tensor,
    frame: Tensor,
    spread: Tensor,
    most: int,
    n_draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Return how much tighter 2 to `most` groups are than those of a null [k, unit]."""
    observed = _tightness(frame, spread, most)
    draws = (null(points, frame, spread, generator) for _ in range(n_draws))
    nulls = torch.stack([_tightness(*draw, most) for draw in draws])
    return (observed - nulls.mean(0)) / nulls.std(0).clamp(min=1e-6)


def _tightness(frame: Tensor, spread: Tensor, most: int) -> Tensor:
    """Return the log of total over within-group squares for 2 to `most` groups [k, unit]."""
    coordinates = frame * spread[:, None]
    found = []
    for k in range(2, most + 1):
        some = coordinates[:, :, : k - 1]
        total = some.square().sum((1, 2))
        within = k_means(some, k, starts=_QUICK)[1]
        # duplicates can leave nothing within: as tight as single precision tells
        found.append(torch.log(total / torch.maximum(within, 1e-6 * total)))
    return torch.stack(found)


def _by_size(groups: Tensor, k: int) -> Tensor:
    """Return groups renumbered, the largest first."""
    size = one_hot(groups, k).sum(1)
    rank = size.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank.gather(1, groups)


def _stability(
    points: Tensor, groups: Tensor, k: int, n_resamples: int, generator: torch.Generator
) -> Tensor:
    """Return the mean agreement [unit] with the divisions of resampled points."""
    n_points = points.shape[1]
    agreement = torch.zeros(len(points))
    for _ in range(n_resamples):
        pick = torch.randint(n_points, (n_points,), generator=generator)
        sample = points[:, pick]
        members = one_hot(k_means(sample, k, starts=_QUICK)[0], k).to(points.dtype)
        size = members.sum(1)[..., None]
        centres = torch.where(size > 0, (members.mT @ sample) / size, torch.inf)
        again = torch.cdist(points, centres).nan_to_num(torch.inf).argmin(2)
        agreement += adjusted_rand(groups, again, k)
    return agreement / max(1, n_resamples)
