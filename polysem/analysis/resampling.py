"""Bootstrap intervals over images: one set of weights, by which every statistic is redrawn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LEVEL", "interval", "resampled_mean", "resamplings"]

Floats = npt.NDArray[np.float64]

#: Coverage of all intervals.
LEVEL = 0.95


def resamplings(n_images: int, *, n: int = 1000, seed: int = 0) -> Floats:
    """Return weights [1 + n, image] that sum to 1: first the data as they are, then `n` draws.

    A draw takes as many images as there are, with replacement (Efron 1979).

    >>> resamplings(4, n=2).shape
    (3, 4)
    """
    draws = np.random.default_rng(seed).multinomial(n_images, np.full(n_images, 1 / n_images), n)
    weights: Floats = np.concatenate([np.ones((1, n_images)), draws]) / n_images
    return weights


def resampled_mean(weights: Floats, values: npt.ArrayLike) -> Floats:
    """Return the mean over images of `values` [image, ...] for each resampling [1 + n, ...].

    NaN is missing: it is left out, and a mean of nothing is NaN.
    """
    given = np.asarray(values, dtype=np.float64)
    flat = given.reshape(len(given), -1)
    there = ~np.isnan(flat)
    if there.all():
        mean = weights @ flat
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weights @ np.where(there, flat, 0)) / (weights @ there)
    found: Floats = mean.reshape(len(weights), *given.shape[1:])
    return found


def interval(resampled: Floats) -> tuple[Floats, Floats, Floats]:
    """Return estimate, lower and upper end of each statistic [1 + n, ...] given for resamplings.

    Percentile interval at `LEVEL`; NaN where the draws do not differ, as with a single image.
    """
    draws = resampled[1:]
    with np.errstate(invalid="ignore"):
        some = np.isfinite(draws).all(0) & (np.ptp(draws, axis=0) > 0)
    tail = (1 - LEVEL) / 2
    ends = np.quantile(draws, (tail, 1 - tail), axis=0)
    low, high = np.where(some, ends, np.nan)
    return resampled[0], low, high
