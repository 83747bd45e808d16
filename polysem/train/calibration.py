"""From how sure a model was and whether it was right to one number: its calibration error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["expected_calibration_error"]


def expected_calibration_error(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, bins: int = 15
) -> float:
    """Return by how much a model's confidence misses its accuracy, on average over images.

    Images are sorted into `bins` intervals of confidence of equal width; the error is
    ``Σ_b n_b/n · |accuracy(b) − mean confidence(b)|``, from 0 (best) to 1. It grows with the
    number of bins and shrinks with the number of images, so compare at equal ones.

    Parameters
    ----------
    confidence : float array [image]
        Probability, from 0 to 1, that the model gave to the class it chose.
    correct : bool array [image]
        Whether that was the right class.
    bins : int

    Returns
    -------
    float
        NaN without images.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, eq. 3.

    Examples
    --------
    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False]), 6)
    0.1
    """
    sure = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.ndim != 1:
        raise ValueError(f"confidence and correct have shapes {sure.shape} and {right.shape}")
    if not sure.size:
        return float("nan")
    # eq. 3's intervals are open below and closed above; confidence 0 joins the first
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right - sure, minlength=bins)
    return float(np.abs(gap).sum() / sure.size)
