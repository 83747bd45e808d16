"""How much a unit prefers one class: from labels alone, without embeddings.

Classes count alike however many images they have: what is compared are means over the images of
a class, of activations above the unit's smallest value. NaN marks a constant unit, and all units
where fewer than two classes occur.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.stats

from polysem.analysis.scaling import Floats, unit_interval

__all__ = ["class_aurocs", "class_means", "effective_classes", "selectivity_index"]

Labels = npt.NDArray[np.integer]
Scores = npt.NDArray[np.float64]


def class_means(activations: Floats, labels: Labels) -> Scores:
    """Return the mean activation of each class above the unit's smallest, stretched to [0, 1].

    Parameters
    ----------
    activations : float array [image, unit]
    labels : int array [image]

    Returns
    -------
    float64 array [class, unit]
        One row for each class that occurs, in ascending order. NaN for a constant unit.
    """
    scaled = unit_interval(activations)
    found = np.unique(labels)
    hits = (labels[None] == found[:, None]).astype(np.float64)
    return np.asarray((hits @ scaled) / hits.sum(1, keepdims=True))


def selectivity_index(means: Scores) -> Scores:
    """Return how far the preferred class stands above the others, in [0, 1]; 1 is one class alone.

    ``(μ_max - μ_rest) / (μ_max + μ_rest)``, μ_rest the mean of the other classes (Morcos et al.
    2018, arXiv 1803.06959, on activations above the unit's smallest).

    Parameters
    ----------
    means : float array [class, unit]
        From `class_means`, or class means minus the unit's smallest activation.

    >>> selectivity_index(np.array([[3.0, 1.0], [1.0, 1.0], [1.0, 1.0]]))
    array([0.5, 0. ])
    """
    if len(means) < 2:
        return np.full(means.shape[-1], np.nan)
    top = means.max(0)
    rest = (means.sum(0) - top) / (len(means) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((top - rest) / (top + rest), dtype=np.float64)


def effective_classes(means: Scores) -> Scores:
    """Return to how many classes the unit answers, from 1 to the number of classes.

    ``exp(-Σ p ln p)``, p_c the share of class c in the sum of class means; low is selective.
    Equal to shares of activation mass where classes have equally many images.

    >>> effective_classes(np.array([[1.0, 2.0], [1.0, 0.0]])).round(2)
    array([2., 1.])
    """
    if len(means) < 2:
        return np.full(means.shape[-1], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = means / means.sum(0)
        logs = np.where(share > 0, np.log(np.where(share > 0, share, 1)), 0)
        entropy = -(share * logs).sum(0)
    return np.asarray(np.exp(entropy))


def class_aurocs(activations: Floats, labels: Labels) -> Scores:
    """Return how well the activation tells each class from the rest, in [0, 1]; 0.5 is chance.

    The probability that an image of the class excites the unit more than one of another class,
    ties counted half (the statistic of Mann and Whitney); of ranks, so no activation is too
    large for it.

    Returns
    -------
    float64 array [class, unit]
        One row for each class that occurs, ascending; the best one of a unit is its maximum.

    References
    ----------
    Bykov et al. 2023, Labeling Neural Representations with Inverse Recognition (INVERT).
    """
    found = np.unique(labels)
    if len(found) < 2:
        return np.full((len(found), activations.shape[1]), np.nan)
    ranks = scipy.stats.rankdata(activations, axis=0)
    hits = (labels[None] == found[:, None]).astype(np.float64)
    n_in = hits.sum(1, keepdims=True)
    n_out = len(labels) - n_in
    aurocs = (hits @ ranks - n_in * (n_in + 1) / 2) / (n_in * n_out)
    varies = (activations != activations[:1]).any(0)
    return np.where(varies, aurocs, np.nan)
