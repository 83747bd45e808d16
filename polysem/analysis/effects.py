"""How far two arms of networks differ: effect, interval and permutation test, on plain arrays.

An arm is one way of making networks, a run one network of it. Networks of an arm differ by their
seed; layers are the same in all; units lie in layers and are matched to none.

Intervals are those of a hierarchical bootstrap over seed, layer and unit, in closed form: the
variance that each level's draws would have with infinitely many of them, n - 1 of n so that it is
unbiased (McCarthy and Snowden 1985). Whoever draws seeds has drawn the units below them too, so
noise of a lower level is counted once (Davison and Hinkley 1997, section 3.8), and layers add what
they differ by beyond it. Ends are t standard errors away, by Satterthwaite's degrees of freedom:
percentiles of draws from three seeds would be far too close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.stats

from polysem.analysis.resampling import LEVEL

__all__ = [
    "Cell",
    "Estimate",
    "Summary",
    "cliffs_delta",
    "interval_of_delta",
    "median_difference",
    "pair_deltas",
    "placements",
    "spread",
    "unit_variance",
]  # fmt: skip

Floats = npt.NDArray[np.float64]
Summary = Literal["median", "mean"]


@dataclass(frozen=True)
class Cell:
    """Values of the faces of the units of one network at one layer.

    Attributes
    ----------
    values : float array [face]
        Without NaN: what is missing is left out.
    units : int array [face]
        The unit that each face belongs to, 0 to n_units - 1.
    n_units : int
        Units there are, those without a value too.
    """

    values: Floats
    units: npt.NDArray[np.int64]
    n_units: int

    def summary(self, how: Summary) -> float:
        """Return median or mean of the values; NaN if there is none."""
        if not len(self.values):
            return float("nan")
        return float(np.median(self.values) if how == "median" else self.values.mean())


@dataclass(frozen=True)
class Estimate:
    """A number with the variance of its estimate, and the degrees of freedom of that."""

    value: float
    variance: float
    freedom: float

    def interval(self) -> tuple[float, float]:
        """Return the ends of its interval at `LEVEL`; NaN where nothing varies."""
        reach = self._reach()
        return self.value - reach, self.value + reach

    def _reach(self) -> float:
        if not (self.variance > 0 and self.freedom > 0):
            return float("nan")
        return float(scipy.stats.t.ppf((1 + LEVEL) / 2, self.freedom) * math.sqrt(self.variance))


def interval_of_delta(delta: Estimate) -> tuple[float, float]:
    """Return the ends of an interval of Cliff's delta, by Fisher's z: within -1 and 1."""
    if not abs(delta.value) < 1:
        return float("nan"), float("nan")
    slope = 1 / (1 - delta.value**2)
    stretched = Estimate(math.atanh(delta.value), delta.variance * slope**2, delta.freedom)
    low, high = stretched.interval()
    return math.tanh(low), math.tanh(high)


def cliffs_delta(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return P(a > b) - P(a < b), in [-1, 1], of two samples without NaN; NaN if one is empty.

    >>> cliffs_delta([2.0, 3.0], [1.0, 2.0])
    0.75
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (len(first) and len(second)):
        return float("nan")
    return float(_wins(first, np.sort(second)).sum() / (len(first) * len(second)))


def placements(values: Floats, ordered: Floats) -> Floats:
    """Return, for each value, the share of `ordered` (ascending) below it minus that above it."""
    return _wins(values, ordered) / len(ordered)


def _wins(values: Floats, ordered: Floats) -> npt.NDArray[np.int64]:
    below = np.searchsorted(ordered, values, "left")
    return below + np.searchsorted(ordered, values, "right") - len(ordered)


def median_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float, float]:
    """Return median(a) - median(b) and the ends of its interval over units; NaN is left out.

    >>> [round(x, 3) for x in median_difference([1.0, 2.0, 3.0], [1.0, float("nan")])]
    [1.0, nan, nan]
    """
    cells = []
    for values in (a, b):
        given = np.asarray(values, dtype=np.float64)
        known = given[~np.isnan(given)]
        cells.append(Cell(known, np.arange(len(known)), len(known)))
    medians = [cell.summary("median") for cell in cells]
    value = medians[0] - medians[1] if np.isfinite(medians).all() else float("nan")
    variance = sum(unit_variance(cell, "median") for cell in cells)
    difference = Estimate(value, variance, sum(cell.n_units for cell in cells) - 2)
    return value, *difference.interval()


def pair_deltas(cells: Sequence[Cell]) -> Floats:
    """Return Cliff's delta of every two networks [run, run] at one layer; NaN if one is empty."""
    ordered = [np.sort(cell.values) for cell in cells]
    found = np.zeros((len(cells), len(cells)))
    for i, j in combinations(range(len(cells)), 2):
        found[i, j] = cliffs_delta(ordered[i], ordered[j])
        found[j, i] = -found[i, j]
    return found


def unit_variance(cell: Cell, how: Summary | Floats) -> float:
    """Return the variance that a summary of a cell has over draws of its units.

    Faces of a unit are drawn together.

    Parameters
    ----------
    cell : Cell
    how : {"median", "mean"} or float array [face]
        The summary; or values whose mean is meant instead of the cell's own.
    """
    n = len(cell.values)
    if n < 2:
        return float("nan")
    if isinstance(how, str) and how == "median":
        # Woodruff (1952): the share of draws below the median varies; read off what values it hits
        middle = np.median(cell.values)
        below = np.where(cell.values == middle, 0.5, cell.values < middle)
        share = _mean_variance(below, cell.units)
        steps = scipy.stats.norm.ppf((np.arange(400) + 0.5) / 400)
        levels = np.clip(0.5 + math.sqrt(share) * steps, 0, 1)
        # between two values of which one is infinite there is nothing
        finite = np.isfinite(cell.values).all()
        drawn = np.quantile(cell.values, levels, method="linear" if finite else "inverted_cdf")
        return float(drawn.var()) if np.isfinite(drawn).all() else float("nan")
    values = cell.values if isinstance(how, str) else how
    return _mean_variance(values, cell.units) if np.isfinite(values).all() else float("nan")


def _mean_variance(values: Floats, units: npt.NDArray[np.int64]) -> float:
    """Return the variance of a mean over draws of n - 1 of n units, whose faces go together."""
    sums = np.bincount(units, values - values.mean())
    n = len(np.unique(units))
    return float((sums**2).sum() / len(values) ** 2 * n / (n - 1)) if n > 1 else float("nan")


def spread(
    first: Floats, second: Floats, by_layer: Floats, of_units: tuple[Floats, float] | None
) -> tuple[float, float]:
    """Return the variance of a difference averaged over layers, and its degrees of freedom.

    Parameters
    ----------
    first, second : float array [run, layer]
        What each network contributes; the difference is that of the arms' means, up to a constant.
    by_layer : float array [layer]
        The difference at each layer.
    of_units : (float array [layer], float), optional
        Variance of `by_layer` over draws of units, and its degrees of freedom. If given, networks
        are not drawn: the interval is of these networks. NaN where there are no units to draw.
    """
    n_layers = len(by_layer)
    if of_units is None:
        parts = [_seeds(first), _seeds(second)]
        cells = (_cells(first) + _cells(second)) / n_layers
    else:
        variance = float(np.nan_to_num(of_units[0]).sum() / n_layers**2)
        parts = [(variance, of_units[1])]
        cells = variance
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / freedom for variance, freedom in parts if variance > 0)
    of_layers = float(by_layer.var(ddof=1)) / n_layers if n_layers > 1 else 0.0
    if of_layers > cells:
        total += of_layers - cells
        below += of_layers**2 / (n_layers - 1)
    return total, total**2 / below if below > 0 else float("nan")


def _seeds(arm: Floats) -> tuple[float, float]:
    """Return the variance of an arm's mean over draws of its networks, and degrees of freedom."""
    return float(arm.mean(1).var(ddof=1)) / len(arm), len(arm) - 1


def _cells(arm: Floats) -> float:
    """Return the variance at one layer of an arm's mean, beyond what its networks share."""
    n_runs, n_layers = arm.shape
    if n_layers < 2:
        return 0.0
    rest = arm - arm.mean(1, keepdims=True) - arm.mean(0) + arm.mean()
    return float((rest**2).sum() / ((n_runs - 1) * (n_layers - 1) * n_runs))
