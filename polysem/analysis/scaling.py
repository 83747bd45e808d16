"""Activations brought to one scale, the first step of every score in this package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "nan_if_constant", "unit_interval"]

Floats = npt.NDArray[np.floating]


def unit_interval(activations: Floats) -> npt.NDArray[np.float64]:
    """Return activations [image, unit] moved and stretched to [0, 1], unit by unit.

    0 is the unit's smallest value over the images and 1 its largest, so that whatever is computed
    from the result depends on neither offset nor scale; NaN for a constant unit.

    >>> unit_interval(np.array([[-1.0, 5.0], [1.0, 5.0], [0.0, 5.0]])).T
    array([[0. , 1. , 0.5],
           [nan, nan, nan]])
    """
    wide = activations.astype(np.float64)
    if not len(wide):
        return wide
    low = wide.min(0)
    extent = wide.max(0) - low
    return np.asarray((wide - low) / np.where(extent > 0, extent, np.nan))


def nan_if_constant(score: npt.ArrayLike, activations: Floats) -> npt.NDArray[np.float64]:
    """Return a score [..., unit] with NaN for the units that never change."""
    varies = (activations != activations[:1]).any(0)
    return np.where(varies, np.asarray(score, dtype=np.float64), np.nan)
