"""Maps of exemplars as text: four bits a cell, enough for an outline or a veil."""

from __future__ import annotations

import base64
import warnings

import numpy as np
import numpy.typing as npt

__all__ = ["firing_levels", "packed_rows", "signed_levels"]

#: The largest number of four bits.
_TOP = 15


def firing_levels(
    maps: npt.NDArray[np.floating], base: npt.NDArray[np.floating], *, lower: bool = False
) -> npt.NDArray[np.uint8]:
    """Return how far each cell is from the unit's mean to its peak in the image, 0 to 15.

    The activating region, more than halfway, is what is above 7.5.

    Parameters
    ----------
    maps : array [unit, rank, y, x]
        NaN where there is no exemplar.
    base : array [unit]
        What each unit does on average. A peak that does not reach past it is measured from the
        map's farthest value instead.
    lower : bool, default False
        The peak is the lowest value.
    """
    sign = -1.0 if lower else 1.0
    values = sign * maps.astype(np.float32)
    middle = sign * base.astype(np.float32)[:, None, None, None]
    with warnings.catch_warnings():  # a rank without exemplar is NaN throughout, and becomes 0
        warnings.simplefilter("ignore", RuntimeWarning)
        peak = np.nanmax(values, axis=(2, 3), keepdims=True)
        low = np.nanmin(values, axis=(2, 3), keepdims=True)
    start = np.where(middle < peak, middle, low)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (values - start) / (peak - start)
    # one value everywhere: no region at all
    share = np.where(np.isfinite(share) & (peak > low), share, 0.0)
    levels: npt.NDArray[np.uint8] = np.round(np.clip(share, 0, 1) * _TOP).astype(np.uint8)
    return levels


def signed_levels(maps: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Return signed maps [unit, rank, y, x] over their largest size: 1 to 15, 8 being zero."""
    values = maps.astype(np.float32)
    size = np.abs(np.nan_to_num(values)).max((2, 3), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(values / size)
    levels: npt.NDArray[np.uint8] = (8 + np.round(7 * np.clip(share, -1, 1))).astype(np.uint8)
    return levels


def packed_rows(levels: npt.NDArray[np.uint8]) -> list[str]:
    """Return one text a row of levels [unit, …]: base64 of two cells a byte, the first one high.

    >>> packed_rows(np.array([[15, 1, 2]], dtype=np.uint8))
    ['8SA=']
    """
    flat = levels.reshape(len(levels), -1)
    if flat.shape[1] % 2:
        flat = np.pad(flat, ((0, 0), (0, 1)))
    pairs = (flat[:, ::2] << 4) | flat[:, 1::2]
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in pairs]
