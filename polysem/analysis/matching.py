"""Units of two networks matched by what they do on the same images, and layers compared whole.

Activations of all images are read a slab at a time; what is kept are moments between units, whose
size does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.optimize

from polysem.analysis.faces import Face
from polysem.analysis.scaling import Floats

__all__ = ["correlations", "covariances", "deviations", "linear_cka", "match_units"]

#: Numbers [image, unit] of one network that are held at once.
_SLAB = 1 << 22


def covariances(first: Face, second: Face) -> npt.NDArray[np.float64]:
    """Return population covariances over images of the units of two faces.

    Parameters
    ----------
    first, second : Face
        Of runs on the same images, probed with ``pooled``. Both may be the same.

    Returns
    -------
    float64 array [unit of first, unit of second]
        Of activations turned towards the faces' tails; 0 for a unit that is constant.
    """
    n_images = first.units.sizes["image"]
    total = np.zeros((first.n_units, second.n_units))
    size = max(1, _SLAB // max(first.n_units, second.n_units))
    for start in range(0, n_images, size):
        some = slice(start, start + size)
        a = _standardised(first, some)
        total += a.T @ (a if second is first else _standardised(second, some))
    return np.asarray(total / n_images * np.outer(deviations(first), deviations(second)))


def deviations(face: Face) -> npt.NDArray[np.float64]:
    """Return the standard deviation over images of each unit of a face; 0 if constant."""
    return np.where(face.constant, 0.0, np.sqrt(face.moment("variance")))


def correlations(covariance: Floats, first: Floats, second: Floats) -> npt.NDArray[np.float64]:
    """Return Pearson's correlations of units, -1 to 1; NaN where one is constant.

    Parameters
    ----------
    covariance : float array [unit of first, unit of second]
    first, second : float array [unit]
        Standard deviations.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((covariance / np.outer(first, second)).clip(-1, 1))


def match_units(likeness: Sequence[Floats] | Floats) -> npt.NDArray[np.int64]:
    """Return the one-to-one matching of units whose sum of likeness is largest.

    Parameters
    ----------
    likeness : float array [..., unit of first, unit of second]
        Higher is more alike, as many units in both; leading axes, such as the faces of a unit,
        are averaged. NaN for units that cannot be matched.

    Returns
    -------
    int64 array [unit of second]
        The unit of the first network that each unit of the second is matched to; -1 where none of
        the two can be matched.

    References
    ----------
    Kuhn 1955, by the algorithm of Crouse 2016 in scipy.
    """
    given = np.asarray(likeness, dtype=np.float64)
    mean = given.reshape(-1, *given.shape[-2:]).mean(0)
    known = np.isfinite(mean)
    rows, columns = scipy.optimize.linear_sum_assignment(np.where(known, mean, -2.0), maximize=True)
    matched = np.empty(mean.shape[1], dtype=np.int64)
    matched[columns] = np.where(known[rows, columns], rows, -1)
    return matched


def linear_cka(cross: Floats, first: Floats, second: Floats) -> float:
    """Return how alike two layers are as a whole, whatever the rotation of their units, 0 to 1.

    ``‖C_xy‖² / (‖C_xx‖ ‖C_yy‖)`` of Frobenius norms; NaN where a layer is constant.

    Parameters
    ----------
    cross, first, second : float array [unit, unit]
        Covariances between the layers, and within each.

    References
    ----------
    Kornblith et al., arXiv 1905.00414.
    """
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(np.linalg.norm(cross) ** 2 / scale) if scale > 0 else float("nan")


def _standardised(face: Face, images: slice) -> npt.NDArray[np.float32]:
    """Return some images' activations [image, unit] of mean 0 and deviation 1 over all images.

    Single precision is enough once the mean is gone; sums over slabs are kept in double.
    """
    values = face.units["pooled"].sel(pool=face.pool).isel(image=images).to_numpy()
    deviation = np.where(face.constant, np.inf, deviations(face))
    scaled = (values - face.moment("mean")) * (face.sign / deviation)
    return np.asarray(scaled, dtype=np.float32)
