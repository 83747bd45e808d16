"""Medians over units with intervals.

Intervals come from a bootstrap over units. They say how far the median of a layer would move with
other units of the same network on the same images; of other seeds of the training they say
nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["median_interval"]

_REPLICATES = 1000


def median_interval(values: npt.ArrayLike, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the median and the ends of its 95 % interval; NaN is left out.

    >>> median_interval([1.0, 1.0, 1.0, float("nan")])
    (1.0, 1.0, 1.0)
    """
    known = _known(values)
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    low, high = _ends(_drawn_medians(known, np.random.default_rng(seed)))
    return float(np.median(known)), low, high


def _known(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    given = np.asarray(values, dtype=np.float64)
    return given[~np.isnan(given)]


def _ends(drawn: npt.NDArray[np.float64]) -> tuple[float, float]:
    # values that occurred: a score may be infinite
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def _drawn_medians(
    values: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return medians of resampled values.

    The rank of the median in a resample is drawn directly: the number of draws below a value is
    binomial, so that the median's rank is the median of uniform draws, a Beta variable.
    """
    n = len(values)
    middle = rng.beta(n // 2 + 1, n - n // 2, size=_REPLICATES)
    return np.asarray(np.sort(values)[np.minimum((middle * n).astype(int), n - 1)])
