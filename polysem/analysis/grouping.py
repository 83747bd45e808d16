"""Groups of points on a sphere: found, and held against chance. Pure functions of directions.

Groups are HDBSCAN's (Campello et al. 2013) on unit-length vectors, where Euclidean distance orders
pairs as the cosine does, after the directions of largest variance are kept.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_samples

__all__ = [
    "NO_GROUP", "covered_silhouette", "find_groups", "map_points", "null_silhouettes", "reduced",
    "stability",
]  # fmt: skip

#: Label of points in no group.
NO_GROUP = -1

Points = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

_DIMENSIONS = 16

#: Points that quality is measured on at once; more are drawn from.
_MOST = 3000


def reduced(directions: Points) -> Points:
    """Return directions [point, dim] in the 16 dimensions of largest variance, of length 1."""
    n = min(_DIMENSIONS, *directions.shape)
    return _normalised(PCA(n, random_state=0).fit_transform(directions))


def find_groups(points: Points, min_size: int) -> tuple[Labels, npt.NDArray[np.float64]]:
    """Return the group of each point, `NO_GROUP` for none, and how firmly it belongs, 0 to 1.

    Parameters
    ----------
    points : float array [point, dim]
        Of length 1.
    min_size : int
        Points that a group must have, at least 2.
    """
    if len(points) < max(2 * min_size, 3):  # HDBSCAN never returns one group for all
        return np.full(len(points), NO_GROUP), np.zeros(len(points))
    found = HDBSCAN(min_cluster_size=min_size, copy=True).fit(points)
    return found.labels_.astype(np.int64), found.probabilities_


def stability(points: Points, labels: Labels, min_size: int, *, n: int = 10) -> list[float]:
    """Return the adjusted Rand index of the groups with those of bootstrap samples.

    Each sample draws as many points as there are, at most 3,000, with replacement, leaves
    repetitions out and is grouped anew, with `min_size` in proportion; points in no group count
    as a group. 1: the same groups every time; 0: chance.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        rows = np.unique(rng.integers(len(points), size=min(len(points), _MOST)))
        again, _ = find_groups(points[rows], _scaled(min_size, len(rows), len(points)))
        found.append(float(adjusted_rand_score(labels[rows], again)))
    return found


def covered_silhouette(points: Points, labels: Labels) -> float:
    """Return the mean silhouette by the cosine, -1 to 1; points in no group count 0.

    So that a few tight groups amid noise do not pass for structure. 0 if there are fewer than two
    groups. Of at most 3,000 points drawn at random.
    """
    rows = _some(len(points))
    kept = rows[labels[rows] != NO_GROUP]
    if not 2 <= len(np.unique(labels[kept])) < len(kept):
        return 0.0
    values = silhouette_samples(points[kept], labels[kept], metric="cosine")
    return float(values.sum() / len(rows))


def null_silhouettes(directions: Points, min_size: int, *, n: int = 20) -> list[float]:
    """Return what `covered_silhouette` gives where there are no groups.

    Each draw permutes every dimension of the directions among the points by itself, which keeps
    how each is spread and breaks what goes together; then reduces and groups as before. At most
    3,000 points, with `min_size` in proportion.
    """
    rng = np.random.default_rng(0)
    some = directions[_some(len(directions))]
    size = _scaled(min_size, len(some), len(directions))
    found = []
    for _ in range(n):
        points = reduced(_normalised(rng.permuted(some, axis=0)))
        labels, _ = find_groups(points, size)
        found.append(covered_silhouette(points, labels))
    return found


def map_points(directions: Points) -> npt.NDArray[np.float64]:
    """Return UMAP's map of directions [point, 2], by the cosine, always the same.

    For the eye alone: distances between far groups mean little (McInnes et al. 1802.03426).
    """
    if len(directions) < 5:  # too few for a graph of neighbours
        flat = PCA(min(2, *directions.shape)).fit_transform(directions)
        return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))).astype(np.float64)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numba, sklearn's renamings, disconnected points
            from umap import UMAP

            found = UMAP(
                metric="cosine",
                n_neighbors=min(15, len(directions) - 1),
                init="pca" if len(directions) < 50 else "spectral",
                random_state=0,
                n_jobs=1,
            ).fit_transform(directions)
    finally:
        torch.set_num_threads(threads)  # which UMAP, through OpenMP, sets anew for all
    return np.asarray(found, dtype=np.float64)


def _normalised(points: Points) -> Points:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.where(length > 0, length, 1))


def _some(n: int) -> npt.NDArray[np.int64]:
    if n <= _MOST:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, _MOST, replace=False))


def _scaled(min_size: int, n_some: int, n_all: int) -> int:
    return max(2, round(min_size * n_some / n_all))
