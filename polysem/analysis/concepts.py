"""Which annotated concepts excite a unit, and how many independent ones: for data that carries any.

Everything is of ranks, so that neither offset, scale nor a single large activation matters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.stats

from polysem.analysis.scaling import Floats

__all__ = ["concept_aurocs", "count_concepts", "dissection_iou"]

Presence = npt.NDArray[np.bool_]

#: Units ranked at once, so that memory does not grow with them.
_AT_ONCE = 1024
#: Images that must show a concept, and as many that must not, for it to be tested.
_FEWEST = 5


def concept_aurocs(activations: Floats, presence: Presence) -> npt.NDArray[np.float64]:
    """Return how well the activation tells images with a concept from those without.

    The probability that an image with the concept excites the unit more than one without, ties
    counted half; 0.5 is chance. Unlike classes, an image may show several concepts.

    Parameters
    ----------
    activations : float array [image, unit]
    presence : bool array [image, concept]

    Returns
    -------
    float64 array [concept, unit]
        In [0, 1]. NaN for a constant unit, and for a concept that all or no images show.

    References
    ----------
    Bykov et al. 2023 (INVERT); of ranks, so that no activation saturates.

    Examples
    --------
    >>> concept_aurocs(np.array([[0.0], [1.0], [2.0]]), np.array([[False], [True], [True]]))
    array([[1.]])
    """
    hits = presence.T.astype(np.float64)
    n_in = hits.sum(1, keepdims=True)
    n_out = presence.shape[0] - n_in
    found = np.empty((len(hits), activations.shape[1]))
    for some in _parts(activations.shape[1]):
        ranks = scipy.stats.rankdata(activations[:, some], axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[:, some] = (hits @ ranks - n_in * (n_in + 1) / 2) / (n_in * n_out)
    return np.where((activations != activations[:1]).any(0), found, np.nan)


def count_concepts(
    activations: Floats,
    presence: Presence,
    *,
    alpha: float = 0.01,
    least: float = 0.55,
    most: int = 8,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count the independent concepts that excite each unit, by greedy set cover.

    The concept whose images have ranks higher than chance allows, more surely than those of any
    other concept, is taken, and its images are set aside: they are explained. The next is sought
    among the images that are left, and so on until a permutation test of the best concept no
    longer rejects that it has nothing to do with the activation. A concept that only keeps company
    with another is not counted: nothing of it is left once the other's images are gone.

    Parameters
    ----------
    activations : float array [image, unit]
    presence : bool array [image, concept]
    alpha : float
        Level of each test, for all concepts together.
    least : float
        The least AUROC among the images that are left; with enough images the test alone would
        count traces.
    most : int
        Concepts counted at most.

    Returns
    -------
    count : int64 array [unit]
        0 where no concept excites the unit; 0 for a constant unit.
    chosen : int64 array [unit, most]
        Which concepts, in the order taken; -1 beyond the count.

    Notes
    -----
    The permutation distribution of a rank sum without replacement is taken as normal with its
    exact mean and variance, and the best of the concepts is judged by Šidák's correction.
    """
    n_images, n_units = activations.shape
    limit = scipy.stats.norm.isf(1 - (1 - alpha) ** (1 / max(1, presence.shape[1])))
    hits = presence.T.astype(np.float64)
    chosen = np.full((n_units, most), -1, dtype=np.int64)
    for some in _parts(n_units):
        ranks = scipy.stats.rankdata(activations[:, some], axis=0) / max(1, n_images)
        left = np.ones(ranks.shape)
        going = np.arange(ranks.shape[1])
        for step in range(most):
            surprise, auroc = _rank_test(ranks[:, going], left[:, going], hits)
            best = surprise.argmax(0)
            column = np.arange(len(going))
            kept = (surprise[best, column] > limit) & (auroc[best, column] >= least)
            going, best = going[kept], best[kept]
            if not len(going):
                break
            chosen[some.start + going, step] = best
            left[:, going] *= ~presence[:, best]
    return (chosen >= 0).sum(1), chosen


def dissection_iou(
    maps: Floats, masks: Presence, *, share: float = 0.005
) -> npt.NDArray[np.float64]:
    """Return how well the places where a unit is most active coincide with each concept's.

    Intersection over union, summed over all images, of the concept's mask and the `share` of
    positions where the unit is most active.

    Parameters
    ----------
    maps : float array [image, unit, y, x]
    masks : bool array [image, concept, y, x]
        On the same grid.
    share : float
        Of all positions of all images.

    Returns
    -------
    float64 array [concept, unit]
        In [0, 1]. NaN for a constant unit, and for a concept that is nowhere.

    References
    ----------
    Bau et al. 2017 (Network Dissection), arXiv 1704.05796.
    """
    values = np.moveaxis(maps, 1, 0).reshape(maps.shape[1], -1)
    areas = np.moveaxis(masks, 1, 0).reshape(masks.shape[1], -1).astype(np.float64)
    threshold = np.quantile(values, 1 - share, axis=1, keepdims=True, method="inverted_cdf")
    active = (values > threshold).astype(np.float64)
    both = areas @ active.T
    union = areas.sum(1)[:, None] + active.sum(1)[None] - both
    varies = np.asarray((values != values[:, :1]).any(1))
    with np.errstate(invalid="ignore"):
        overlap = both / union
    somewhere = areas.sum(1) > 0
    return np.where(varies & somewhere[:, None], overlap, np.nan)


def _rank_test(
    ranks: Floats, left: Floats, hits: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return z of the rank sums and AUROCs [concept, unit] among the images that are left."""
    n_left = left.sum(0)
    total, squares = (ranks * left).sum(0), (ranks**2 * left).sum(0)
    mean = total / np.maximum(n_left, 1)
    variance = np.maximum(squares / np.maximum(n_left, 1) - mean**2, 0)
    n_in = hits @ left
    n_out = n_left - n_in
    above = hits @ (ranks * left) - n_in * mean
    with np.errstate(invalid="ignore", divide="ignore"):
        z = above / np.sqrt(n_in * n_out * variance / (n_left - 1))
        # ranks are those among all images: among those left they keep their order, and their
        # spread brings the difference of means to the scale of an AUROC (a uniform's is 1/√12)
        gap = above / n_in * n_left / n_out
        auroc = 0.5 + gap / np.sqrt(12 * variance)
    valid = (n_in >= _FEWEST) & (n_out >= _FEWEST) & (variance > 1e-12)
    return np.where(valid, z, -np.inf), np.where(valid, auroc, 0.5)


def _parts(n_units: int) -> list[slice]:
    return [slice(start, start + _AT_ONCE) for start in range(0, n_units, _AT_ONCE)]
