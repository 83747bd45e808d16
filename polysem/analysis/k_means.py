"""k-means of many small sets of points at once, and what is said of the groups.

Sets are the units of a layer, points the exemplars of a unit: thousands of sets of a few dozen
points, which libraries would take one at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["adjusted_rand", "k_means", "silhouette"]

#: Rounds of k-means; a few dozen points settle in fewer.
_ROUNDS = 8


def k_means(points: Tensor, k: int, *, starts: int) -> tuple[Tensor, Tensor]:
    """Divide every set of points into k groups.

    Each start takes one of the points, spread over their order, and then k - 1 times the point
    that is farthest from those taken; the tightest division is kept. Nothing is random.

    Parameters
    ----------
    points : Tensor
        [set, point, dim].
    k : int
        Groups; one may be empty where points coincide.
    starts : int
        Starts tried.

    Returns
    -------
    groups : Tensor
        int64 [set, point].
    within : Tensor
        Sum of squared distances to the nearest centre [set].
    """
    n_points = points.shape[1]
    squares = points.square().sum(2)
    lowest = torch.full((len(points),), torch.inf, dtype=points.dtype)
    kept = torch.zeros(points.shape[:2], dtype=torch.int64)
    for start in range(starts):
        groups = _far_apart(points, k, start * n_points // starts)
        for _ in range(_ROUNDS):
            away = _to_centres(points, groups, k)
            nearest = away.argmin(2)
            if torch.equal(nearest, groups):
                break
            groups = nearest
        within = (squares + away.amin(2)).sum(1).clamp(min=0)
        tighter = within < lowest
        lowest = torch.where(tighter, within, lowest)
        kept = torch.where(tighter[:, None], groups, kept)
    return kept, lowest


def silhouette(points: Tensor, groups: Tensor, k: int) -> Tensor:
    """Return the mean silhouette of each set [set], in [-1, 1]; a point alone counts 0.

    Rousseeuw 1987: (b - a) / max(a, b), a the mean distance to the other points of one's group,
    b that to the points of the nearest other group.
    """
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    members = one_hot(groups, k).to(points.dtype)
    size = members.sum(1)
    total = distances @ members
    own_size = size.gather(1, groups)
    own = total.gather(2, groups[..., None])[..., 0] / (own_size - 1).clamp(min=1)
    mean = torch.where(size[:, None] > 0, total / size.clamp(min=1)[:, None], torch.inf)
    other = mean.masked_fill(members.bool(), torch.inf).amin(2)
    score = (other - own) / torch.maximum(other, own)
    alone = (own_size == 1) | other.isinf()
    return torch.where(alone, 0.0, score.nan_to_num(0.0)).mean(1)


def adjusted_rand(one: Tensor, other: Tensor, k: int) -> Tensor:
    """Return the adjusted Rand index [set] of two divisions into at most k groups [set, point].

    Hubert and Arabie 1985: 1 if they are the same, about 0 if they agree by chance.
    """
    first, second = (one_hot(groups, k).to(torch.float64) for groups in (one, other))
    together = _pairs(first.mT @ second).sum((1, 2))
    in_first, in_second = _pairs(first.sum(1)).sum(1), _pairs(second.sum(1)).sum(1)
    chance = in_first * in_second / _pairs(first.new_tensor(one.shape[1]))
    index = (together - chance) / ((in_first + in_second) / 2 - chance)
    return index.nan_to_num(1.0).to(torch.float32)  # both one group: the same division


def _pairs(counts: Tensor) -> Tensor:
    return counts * (counts - 1) / 2


def _far_apart(points: Tensor, k: int, first: int) -> Tensor:
    seed = torch.full((len(points), 1, 1), first)
    away: list[Tensor] = []
    for _ in range(k):
        centre = points.gather(1, seed.expand(-1, -1, points.shape[2]))
        away.append((points - centre).square().sum(2))
        seed = torch.stack(away).amin(0).argmax(1)[:, None, None]
    return torch.stack(away, 2).argmin(2)


def _to_centres(points: Tensor, groups: Tensor, k: int) -> Tensor:
    """Return squared distances to group means less the points' own squares [set, point, group].

    Infinite to a group without points, which thus stays empty.
    """
    members = one_hot(groups, k).to(points.dtype)
    size = members.sum(1)
    centres = (members.mT @ points) / size.clamp(min=1)[..., None]
    away = centres.square().sum(2)[:, None] - 2 * points @ centres.mT
    return torch.where(size[:, None] > 0, away, torch.inf)
