"""Rows of a comparison: from one measure of the networks of two arms to effect, interval and p."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from polysem.analysis import effects, permutation
from polysem.analysis.arms import Arm
from polysem.analysis.coadaptation import compare_heads
from polysem.analysis.effects import Estimate
from polysem.analysis.measures import Measure

__all__ = ["effect_of", "rows_of"]

Floats = npt.NDArray[np.float64]


def rows_of(
    arm: Arm, other: Arm, measure: Measure
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return the row of a measure over all layers, and those of each."""
    n = len(arm.runs)
    single = min(n, len(other.runs)) == 1
    common: dict[str, object] = {
        "arm": arm.name, "other": other.name, "table": measure.table, "measure": measure.name,
        "site": measure.site, "summary": measure.summary, "meaning": measure.meaning,
        "about": "these networks" if single else "training", "runs": n,
        "other_runs": len(other.runs), "q": np.nan,
    }  # fmt: skip
    if measure.images is not None and single:
        found = _of_images(measure.images[:n], measure.images[n:])
        return common | found, []
    if measure.table == "head_network" and single:
        return common | _of_heads(arm, other, measure), []
    parts = _Parts.of(measure, n)
    whole = common | parts.row()
    if not measure.site:
        return whole, []
    each = [common | {"site": site} | parts.at([k]).row() for k, site in enumerate(measure.layers)]
    return whole, each


def effect_of(measure: Measure, n_first: int) -> dict[str, object]:
    """Return values, effects, p and sizes of a measure of units, or of whole networks.

    Parameters
    ----------
    measure : Measure
        The first arm's networks first.
    n_first : int
        Networks of the first arm.

    Returns
    -------
    dict
        The columns of a comparison that do not name what is compared.
    """
    return _Parts.of(measure, n_first).row()


@dataclass(frozen=True)
class _Parts:
    """What rows of a measure are made of; see `effects` for the statistics.

    Attributes
    ----------
    n : int
        Networks of the first arm.
    single : bool
        An arm has one network.
    values : float array [run, layer]
    deltas : float array [layer, run, run] or None
        Cliff's deltas of any two networks, of measures of units.
    shuffled : float array [1 + draw, layer] or None
        Deltas of the arms with units shuffled, if `single`.
    value_variance : float array [run, layer]
        Of `values` over units, if `single`.
    delta_variance : float array [layer]
        Of the deltas between the arms, likewise.
    units : int array [run, layer]
    """

    n: int
    single: bool
    values: Floats
    deltas: Floats | None
    shuffled: Floats | None
    value_variance: Floats
    delta_variance: Floats
    units: npt.NDArray[np.int64]

    @classmethod
    def of(cls, measure: Measure, n: int) -> _Parts:
        values, cells = measure.values, measure.cells
        single = min(n, len(values) - n) == 1
        n_layers = values.shape[1]
        variance = np.full(values.shape, np.nan)
        of_delta = np.full(n_layers, np.nan)
        deltas = shuffled = None
        units = np.zeros(values.shape, dtype=np.int64)
        if cells is not None:
            columns = [[row[k] for row in cells] for k in range(n_layers)]
            deltas = np.stack([effects.pair_deltas(column) for column in columns])
            units = np.array([[len(np.unique(cell.units)) for cell in row] for row in cells])
            if single:
                how = measure.summary
                variance = np.array([[effects.unit_variance(c, how) for c in row] for row in cells])
                of_delta = np.array([_delta_variance(c[:n], c[n:]) for c in columns])
                drawn = [
                    permutation.shuffled_deltas(column[:n], column[n:], layer=k)
                    for k, column in enumerate(columns)
                ]
                shuffled = np.stack(drawn, axis=1)
        elif measure.images is not None:
            units = np.full(values.shape, measure.images.shape[1])
        return cls(n, single, values, deltas, shuffled, variance, of_delta, units)

    def at(self, layers: list[int]) -> _Parts:
        """Return the parts of some layers."""
        return replace(
            self,
            values=self.values[:, layers],
            deltas=None if self.deltas is None else self.deltas[layers],
            shuffled=None if self.shuffled is None else self.shuffled[:, layers],
            value_variance=self.value_variance[:, layers],
            delta_variance=self.delta_variance[layers],
            units=self.units[:, layers],
        )

    def row(self) -> dict[str, object]:
        """Return values, effects, p and sizes."""
        n, values = self.n, self.values
        with np.errstate(invalid="ignore"):  # of two infinite medians there is no difference
            by_layer = values[:n].mean(0) - values[n:].mean(0)
        of_units = self.value_variance[:n].mean(0) / n
        of_units = of_units + self.value_variance[n:].mean(0) / (len(values) - n)
        difference = self._difference(values[:n], values[n:], by_layer, of_units)
        found = _named("value", self._arm(slice(0, n)), Estimate.interval)
        found |= _named("other_value", self._arm(slice(n, None)), Estimate.interval)
        found |= _named("difference", difference, Estimate.interval)
        delta = Estimate(np.nan, np.nan, np.nan)
        if self.deltas is not None:
            across = self.deltas[:, :n, n:]
            delta = self._difference(
                across.mean(2).T, -across.mean(1).T, across.mean((1, 2)), self.delta_variance
            )
        found |= _named("delta", delta, effects.interval_of_delta)
        p, least = self._p()
        return found | {
            "p": p, "least_p": least, "exchanged": self._exchanged(),
            "resampled": self._drawn(), "layers": values.shape[1],
            "units": int(self.units[:n].sum()), "other_units": int(self.units[n:].sum()),
        }  # fmt: skip

    def _difference(
        self, first: Floats, second: Floats, by_layer: Floats, of_units: Floats
    ) -> Estimate:
        value = float(by_layer.mean())
        if not np.isfinite(value):
            return Estimate(float("nan"), float("nan"), float("nan"))
        drawn = (of_units, self._freedom(slice(None))) if self.single else None
        return Estimate(value, *effects.spread(first, second, by_layer, drawn))

    def _arm(self, some: slice) -> Estimate:
        """Return the mean over an arm's networks and layers, the layers as they are."""
        values = self.values[some]
        n, n_layers = values.shape
        if not np.isfinite(values).all():
            return Estimate(float(values.mean()), float("nan"), float("nan"))
        if n > 1:
            return Estimate(float(values.mean()), float(values.mean(1).var(ddof=1)) / n, n - 1)
        variance = float(self.value_variance[some].sum()) / n_layers**2
        return Estimate(float(values.mean()), variance, self._freedom(some))

    def _freedom(self, some: slice) -> float:
        return float((self.units[some] - 1).sum())

    def _p(self) -> tuple[float, float]:
        n = self.n
        if self.single:
            if self.shuffled is None:
                return float("nan"), float("nan")
            means = np.abs(self.shuffled.mean(1))
            means = means[np.isfinite(means)]
            return float((means >= means[0] * (1 - 1e-9)).mean()), 1 / (permutation.DRAWS + 1)
        if self.deltas is not None:
            return permutation.swapped_arms(self.deltas.mean(0), n)
        means = self.values.mean(1)
        return permutation.swapped_arms(means[:, None] - means, n)

    def _exchanged(self) -> str:
        if not self.single:
            return "networks"
        return "" if self.shuffled is None else "units within layers"

    def _drawn(self) -> str:
        layers = ["layer"] if self.values.shape[1] > 1 else []
        units = ["unit"] if self.deltas is not None else []
        return ", ".join([*([] if self.single else ["seed"]), *layers, *units])


def _delta_variance(first: Sequence[effects.Cell], second: Sequence[effects.Cell]) -> float:
    """Return the variance of a layer's delta over draws of units, by placements (DeLong 1988)."""
    total = 0.0
    for own, others in ((first, second), (second, first)):
        ordered = [np.sort(cell.values) for cell in others]
        for cell in own:
            placed = np.mean([effects.placements(cell.values, o) for o in ordered], axis=0)
            total += effects.unit_variance(cell, placed) / len(own) ** 2
    return total


def _named(
    name: str, estimate: Estimate, ends: Callable[[Estimate], tuple[float, float]]
) -> dict[str, object]:
    low, high = ends(estimate)
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def _of_images(first: Floats, second: Floats) -> dict[str, object]:
    """Return the row of a measure of images [run, image], both arms on the same ones."""
    a, b = first.mean(0), second.mean(0)
    difference, p = permutation.paired(a - b)
    found: dict[str, object] = {}
    for name, values in (("value", a), ("other_value", b)):
        mean = Estimate(float(values.mean()), float(values.var(ddof=1)) / len(a), len(a) - 1)
        found |= _named(name, mean, Estimate.interval)
    return found | _named("difference", difference, Estimate.interval) | {
        "p": p, "least_p": 1 / (permutation.DRAWS + 1), "exchanged": "images",
        "resampled": "image", "layers": 1,
        "units": len(a), "other_units": len(a),
    }  # fmt: skip


def _of_heads(arm: Arm, other: Arm, measure: Measure) -> dict[str, object]:
    """Return the row of a statistic of all heads, with intervals over images.

    There is no p: heads of two networks do not correspond, so that images cannot be exchanged.
    """
    n = len(arm.runs)
    found: dict[str, object] = {
        "value": measure.values[:n].mean(), "other_value": measure.values[n:].mean(),
        "difference": measure.values[:n].mean() - measure.values[n:].mean(),
        "p": np.nan, "least_p": np.nan, "exchanged": "", "resampled": "", "layers": 1,
    }  # fmt: skip
    if len(measure.values) == 2:
        table = compare_heads(other.runs[0], arm.runs[0]).set_index("statistic")
        row = table.astype(float).loc[measure.name].to_dict()
        for name, its in {"value": "b", "other_value": "a", "difference": "difference"}.items():
            found |= {f"{name}_{end}": row[f"{its}_{end}"] for end in ("low", "high")}
        found["resampled"] = "image"
    return found | {"units": 0, "other_units": 0}
