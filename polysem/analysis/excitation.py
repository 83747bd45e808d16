"""How a unit's activation spreads over images: the range in which it is excited.

Every function takes activations [image, unit] and returns one float64 a unit. None depends on
offset or scale, so that networks whose units live on different scales can be compared:
activations are first moved so that the unit's smallest value over the images is 0. NaN marks a
constant unit. Higher means that fewer images excite the unit, except where said.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polysem.analysis.scaling import Floats, nan_if_constant, unit_interval

__all__ = [
    "excess_kurtosis",
    "gini_index",
    "half_mass_share",
    "hoyer_from_moments",
    "hoyer_sparsity",
    "near_max_share",
    "tail_ratio",
    "treves_rolls_from_moments",
    "treves_rolls_sparsity",
]

Scores = npt.NDArray[np.float64]


def tail_ratio(activations: Floats) -> Scores:
    """Return how far the top 0.1 % of images lies out, in widths of the middle half.

    ``(q99.9 - q50) / (q75 - q25)``, from 0 up: 0.5 to 1 for bounded shapes, 2.3 for a normal
    distribution, infinite where the middle half of the images all give one value. Quantiles are
    values that occurred, so that fewer than 1,000 images understate it.

    >>> tail_ratio(np.linspace(0, 1, 1001)[:, None]).round(2)
    array([1.])
    """
    ordered = np.sort(activations, axis=0).astype(np.float64)
    # the smallest value that a share q of the images does not exceed
    ranks = np.ceil(np.array([0.25, 0.5, 0.75, 0.999]) * len(ordered)).astype(int) - 1
    low, middle, high, far = ordered[np.maximum(ranks, 0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (far - middle) / (high - low)
    # more than half of the images at one value, and even the top 0.1 % is there
    ratio = np.where((far == middle) & (high == low), np.inf, ratio)
    return nan_if_constant(ratio, activations)


def excess_kurtosis(activations: Floats) -> Scores:
    """Return the excess kurtosis over images: 0 for a normal distribution, at least -2."""
    wide = activations.astype(np.float64)
    off = wide - wide.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = (off**4).mean(0) / (off**2).mean(0) ** 2 - 3
    return nan_if_constant(kurtosis, activations)


def hoyer_sparsity(activations: Floats) -> Scores:
    """Return Hoyer's sparsity over images, in [0, 1]: 1 if one image alone excites the unit.

    ``(sqrt(n) - ‖a‖₁ / ‖a‖₂) / (sqrt(n) - 1)`` of activations above the unit's smallest (Hoyer
    2004, JMLR 5:1457).

    >>> hoyer_sparsity(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [7.0, 0.0]])).round(2)
    array([1.  , 0.27])
    """
    above = unit_interval(activations)
    return hoyer_from_moments(above.mean(0), (above**2).mean(0), len(above))


def hoyer_from_moments(mean: Scores, mean_square: Scores, n_images: int) -> Scores:
    """Return Hoyer's sparsity from moments of activations above the unit's smallest [unit]."""
    root = np.sqrt(n_images)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((root - root * mean / np.sqrt(mean_square)) / (root - 1))


def treves_rolls_sparsity(activations: Floats) -> Scores:
    """Return 1 minus the Treves-Rolls measure, in [0, 1): near 1 if few images excite the unit.

    ``1 - (Σ a / n)² / (Σ a² / n)`` of activations above the unit's smallest (Treves and Rolls
    1991, Network 2:371, as a sparsity: Rolls and Tovee 1995).
    """
    above = unit_interval(activations)
    return treves_rolls_from_moments(above.mean(0), (above**2).mean(0))


def treves_rolls_from_moments(mean: Scores, mean_square: Scores) -> Scores:
    """Return the same from moments of activations above the unit's smallest [unit]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - mean**2 / mean_square)


def gini_index(activations: Floats) -> Scores:
    """Return Gini's index over images, in [0, 1): 0 if all images excite the unit alike.

    Of activations above the unit's smallest (Hurley and Rickard 2009, arXiv 0811.4706).

    >>> gini_index(np.array([[0.0], [0.0], [0.0], [1.0]]))
    array([0.75])
    """
    ordered = np.sort(unit_interval(activations), axis=0)
    n = len(ordered)
    share = ordered / ordered.sum(0)
    weight = (n - np.arange(1, n + 1) + 0.5) / n
    return np.asarray(1 - 2 * (share * weight[:, None]).sum(0))


def near_max_share(activations: Floats) -> Scores:
    """Return the share of images within 5 % of the unit's range of its largest value.

    In (0, 1]. High where a unit saturates: it then answers alike to many images; low is sparse.
    """
    return nan_if_constant((unit_interval(activations) >= 0.95).mean(0), activations)


def half_mass_share(activations: Floats) -> Scores:
    """Return the share of images that hold half of the unit's activation, in (0, 1].

    The fewest images whose activations above the unit's smallest add up to half of the sum of
    all; low is sparse, and at most about 0.5.

    >>> half_mass_share(np.array([[0.0], [1.0], [1.0], [2.0]]))
    array([0.25])
    """
    ordered = np.sort(unit_interval(activations), axis=0)[::-1]
    mass = np.cumsum(ordered, axis=0)
    with np.errstate(invalid="ignore"):
        needed = (mass < mass[-1] / 2).sum(0) + 1
    return nan_if_constant(needed / len(ordered), activations)
