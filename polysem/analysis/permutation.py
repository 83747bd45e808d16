"""Permutation tests of the difference of two arms: networks, units or images put to either arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
import scipy.stats

from polysem.analysis.effects import Cell, Estimate

__all__ = ["DRAWS", "least_p", "paired", "shuffled_deltas", "swapped_arms"]

Floats = npt.NDArray[np.float64]

#: Arrangements drawn where there are too many to go through all.
DRAWS = 1999
_ALL_UP_TO = 20_000


def swapped_arms(between: Floats, n_first: int) -> tuple[float, float]:
    """Return the permutation p-value of the difference of two arms, and the smallest possible.

    Networks are put into the arms in all ways that keep the arms' sizes (20,000 at most, else 1,999
    are drawn). Exact if both arms come from one pool.

    Parameters
    ----------
    between : float array [run, run]
        Difference of each network from each, antisymmetric; the first arm's networks first. The
        statistic is its mean over pairs across the arms; two-sided.
    n_first : int
        Networks of the first arm.
    """
    n = len(between)
    every = math.comb(n, n_first) <= _ALL_UP_TO
    inside = _arrangements(n, n_first) if every else _shuffles(n, n_first)
    size = np.abs(inside @ between.sum(1))  # antisymmetric: pairs within the first arm cancel
    return float((size >= size[0] * (1 - 1e-9)).mean()), least_p(n_first, n - n_first)


@lru_cache(maxsize=8)
def _arrangements(n: int, n_first: int) -> Floats:
    """Return all ways to choose the first arm's networks [way, run]; the first ones come first."""
    inside = np.zeros((math.comb(n, n_first), n))
    for row, chosen in enumerate(combinations(range(n), n_first)):
        inside[row, list(chosen)] = 1
    return inside


def least_p(n_first: int, n_second: int) -> float:
    """Return the smallest two-sided p-value that arms of so many networks can give.

    >>> least_p(3, 3), round(least_p(4, 4), 4)
    (0.1, 0.0286)
    """
    ways = math.comb(n_first + n_second, n_first)
    mirrored = 2 if n_first == n_second else 1
    return float(mirrored / ways if ways <= _ALL_UP_TO else 1 / (DRAWS + 1))


def shuffled_deltas(first: Sequence[Cell], second: Sequence[Cell], *, layer: int = 0) -> Floats:
    """Return Cliff's delta of two arms at a layer with units put into the arms at random [1 + n].

    The delta as it is comes first. Units keep their faces together; those of all networks of an
    arm are one pool, so a small p says that these networks differ, not how they were made. Layers
    are shuffled each by itself.
    """
    cells = [*first, *second]
    starts = np.cumsum([0, *(cell.n_units for cell in cells)])
    unit = np.concatenate([c.units + at for c, at in zip(cells, starts, strict=False)])
    ranks = scipy.stats.rankdata(np.concatenate([cell.values for cell in cells]))
    n_units = int(starts[-1])
    of_units = np.stack([np.bincount(unit, ranks, n_units), np.bincount(unit, minlength=n_units)])
    inside = _shuffles(n_units, int(starts[len(first)]))
    sums = np.concatenate([block.astype(np.float64) @ of_units.T for block in np.split(inside, 8)])
    total, n_in = sums[:, 0], sums[:, 1]
    n_out = len(ranks) - n_in
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (2 * total - n_in * (n_in + 1)) / (n_in * n_out) - 1
    found[1:] = np.random.default_rng(layer).permutation(found[1:])
    return found


@lru_cache(maxsize=3)
def _shuffles(n_units: int, n_first: int) -> npt.NDArray[np.bool_]:
    """Return who is in the first arm [1 + n, unit]; the arms as they are come first."""
    labels = np.tile(np.arange(n_units) < n_first, (DRAWS + 1, 1))
    drawn = np.random.default_rng(n_units).permuted(labels, axis=1)
    drawn[0] = labels[0]
    return drawn


def paired(differences: Floats, *, seed: int = 0) -> tuple[Estimate, float]:
    """Return the mean of differences [image] of two arms on the same images, and its p-value.

    By random signs: exact if the arms could be swapped image by image. 1 if all are 0.
    """
    n = len(differences)
    rng = np.random.default_rng(seed)
    drawn = [
        rng.choice([-1.0, 1.0], size=(200, n)) @ differences for _ in range((DRAWS + 1) // 200)
    ]
    size = np.abs(np.concatenate([[differences.sum()], np.concatenate(drawn)[1:]]))
    p = float((size >= size[0] * (1 - 1e-9) - 1e-12).mean())
    variance = float(differences.var(ddof=1)) / n if n > 1 else float("nan")
    return Estimate(float(differences.mean()), variance, n - 1), p
