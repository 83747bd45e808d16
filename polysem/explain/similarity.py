"""How alike two attribution maps of one image are, by the four measures of the sanity checks.

Adebayo et al., Sanity Checks for Saliency Maps, arXiv 1810.03292, section 3. All are 1 for equal
maps, near 0 for unrelated ones, and NaN where a map is constant: it says nothing then.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from skimage.feature import hog
from skimage.metrics import structural_similarity

__all__ = [
    "SIMILARITIES",
    "hog_similarity",
    "spearman_abs_similarity",
    "spearman_similarity",
    "ssim_similarity",
]

Map = npt.NDArray[np.floating]


def spearman_similarity(one: Map, other: Map) -> float:
    """Rank correlation of two signed maps [y, x], from −1 to 1; ties share their mean rank.

    >>> a = np.arange(12.0).reshape(3, 4)
    >>> spearman_similarity(a, a**3), spearman_similarity(a, -a)
    (1.0, -1.0)
    """
    return _correlation(rankdata(one), rankdata(other))


def spearman_abs_similarity(one: Map, other: Map) -> float:
    """Rank correlation of the absolute values of two maps [y, x], from −1 to 1."""
    return spearman_similarity(np.abs(one), np.abs(other))


def ssim_similarity(one: Map, other: Map) -> float:
    """Structural similarity of two maps [y, x], each divided by its largest absolute value.

    The mean over windows of 7 × 7 pixels (smaller for maps below that), at most 1. The maps span
    [−1, 1], which is what the constants of the formula are set for.
    """
    if _is_constant(one) or _is_constant(other):
        return float("nan")
    window = min(7, *one.shape)
    window -= 1 - window % 2  # an odd number
    return float(
        structural_similarity(_scaled(one), _scaled(other), data_range=2.0, win_size=window)
    )


def hog_similarity(one: Map, other: Map) -> float:
    """Pearson correlation of the histograms of oriented gradients of two maps, from −1 to 1.

    Nine orientations in about 8 × 8 cells a map, in blocks of 3 × 3 cells.
    """
    if _is_constant(one) or _is_constant(other):
        return float("nan")
    return _correlation(_gradients(one), _gradients(other))


#: The measures by the name that tables give them.
SIMILARITIES: dict[str, Callable[[Map, Map], float]] = {
    "spearman": spearman_similarity,
    "spearman_abs": spearman_abs_similarity,
    "ssim": ssim_similarity,
    "hog": hog_similarity,
}


def _gradients(values: Map) -> Map:
    cell = max(2, min(values.shape) // 8)
    cells = (min(3, values.shape[0] // cell), min(3, values.shape[1] // cell))
    features: Map = hog(
        _scaled(values), orientations=9, pixels_per_cell=(cell, cell), cells_per_block=cells
    )
    return features


def _scaled(values: Map) -> Map:
    scaled: Map = values.astype(np.float64) / np.abs(values).max()
    return scaled


def _is_constant(values: Map) -> bool:
    return bool(values.max() == values.min())


def _correlation(one: Map, other: Map) -> float:
    one, other = one.ravel() - one.mean(), other.ravel() - other.mean()
    length = np.sqrt((one @ one) * (other @ other))
    return float("nan") if length == 0 else float(np.clip(one @ other / length, -1, 1))
