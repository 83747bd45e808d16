"""How sure a mean is: bootstrap intervals over whatever was drawn, images or grids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["mean_interval"]


def mean_interval(
    values: npt.ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of values and the ends of its percentile bootstrap interval.

    NaN are left out. The ends are NaN for fewer than two values, and all three for none. With the
    same seed and number of values the same draws are taken, so that means over the same images
    are resampled together.

    >>> mean_interval([3.0, 3.0, 3.0])
    (3.0, 3.0, 3.0)
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return float("nan"), float("nan"), float("nan")
    if known.size == 1:
        return float(known[0]), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = known[rng.integers(known.size, size=(resamples, known.size))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(known.mean()), float(low), float(high)
