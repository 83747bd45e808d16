"""Arms of networks against each other: every table that their runs share, with intervals.

An arm is one way of making networks (B-cos, with DropHead …), its runs are networks of different
seeds. What an arm of one network shows is of that network, and the table says so: units are not
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from polysem.analysis import effects
from polysem.analysis.arms import Arm, arms_of, checked, sites_of, what_to_know
from polysem.analysis.coadaptation import compare_heads
from polysem.analysis.effects import Estimate
from polysem.analysis.measures import COMPARED, LEFT_OUT, Measure, measures, tables_of
from polysem.errors import DataError, SpecError, did_you_mean
from polysem.progress import progress_bar
from polysem.store.run import Run

__all__ = ["MEANINGS", "Comparison", "compare_runs"]

Floats = npt.NDArray[np.float64]

_ENDS = {"low": "lower end of its 95 % interval", "high": "upper end"}

#: What the columns of a comparison hold.
MEANINGS = {
    "arm": "one arm; positive effects: it is higher",
    "other": "the arm that it is held against",
    "table": "table of the runs that the measure comes from",
    "measure": "what is compared",
    "site": "where: a glob for all layers together, or one site; empty for a whole network",
    "summary": "how units, or images, of a layer became one number: median or mean",
    "value": "that number, mean over the arm's networks and layers",
    **{f"value_{end}": text for end, text in _ENDS.items()},
    "other_value": "the same of the other arm",
    **{f"other_value_{end}": text for end, text in _ENDS.items()},
    "difference": "arm minus other",
    **{f"difference_{end}": text for end, text in _ENDS.items()},
    "delta": "Cliff's delta: chance that a unit (each of its faces) of the arm is higher than one "
    "of the other at the same layer, minus the reverse, mean over pairs of networks and layers, "
    "-1 to 1; missing for whole networks",
    **{f"delta_{end}": text for end, text in _ENDS.items()},
    "p": "chance of an effect as large, either way, if the arms are alike: networks put into arms "
    "in all ways; where an arm has one network, units (or the two networks' images) at random; "
    "missing where nothing can be exchanged",
    "q": "p adjusted to the false discovery rate over the measures of two arms (Benjamini and "
    "Hochberg 1995)",
    "least_p": "smallest p that arms of this size can give",
    "exchanged": "what p exchanges between the arms: networks; units within layers, which takes "
    "the layers as they are; images; empty: nothing",
    "resampled": "what intervals are drawn over; always on these images",
    "about": "training: other seeds of both arms; these networks: says nothing of other seeds, "
    "since an arm has one network",
    "runs": "networks of the arm",
    "other_runs": "networks of the other arm",
    "layers": "layers that both have it at",
    "units": "units with a value of the arm, all layers and networks; images for those of images",
    "other_units": "the same of the other arm",
    "meaning": "what the measure says",
}


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes
    ----------
    table : DataFrame
        A row for each two arms, measure and kind of site; columns as in `MEANINGS`.
    layers : DataFrame
        The same site by site.
    arms : dict of str to list of Run
    notes : list of str
        What has to be known to read it.
    """

    table: pd.DataFrame
    layers: pd.DataFrame
    arms: dict[str, list[Run]]
    notes: list[str]


def compare_runs(
    runs: Mapping[str, Sequence[Run | str | Path]] | Sequence[Run | str | Path],
    *,
    sites: str | None = None,
    tables: Sequence[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare arms of networks by every table that all of their runs have.

    Parameters
    ----------
    runs : mapping of str to sequence of runs, or sequence of runs
        Runs of each arm by its name; or runs that are an arm each, called like their folders. All
        on the same images.
    sites : str, optional
        Globs of sites, comma-separated; by default all, which must then be the same in all runs.
    tables : sequence of str, optional
        Tables to compare, of `polysem.analysis.measures.COMPARED`; by default all that all runs
        have.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    Comparison

    Raises
    ------
    SpecError
        Fewer than two arms, an unknown table or site, a table that a run does not have yet.
    DataError
        Runs on different images or at different sites, or one network twice in an arm.
    RunError
        Heads studied in different ways, or a damaged run.

    Notes
    -----
    Intervals and tests are described in `polysem.analysis.effects`. With two or more networks in
    both arms they are about training; an arm of one leaves only what differs between these
    networks, over layers and units.
    """
    arms = arms_of(runs)
    images = checked(arms)
    everything = [run for arm in arms for run in arm.runs]
    common = sites_of(everything, sites)
    chosen = None if sites is None else common
    wanted, notes = _tables(everything, tables)
    notes = [*what_to_know(arms, wanted), *notes]
    rows: list[dict[str, object]] = []
    by_layer: list[dict[str, object]] = []
    pairs = list(combinations(arms, 2))
    with progress_bar(unit="tables", show=progress) as move:
        for done, (arm, other) in enumerate(pairs):
            for k, name in enumerate(wanted):
                for measure in measures([*arm.runs, *other.runs], [name], chosen, images):
                    whole, single = _rows(arm, other, measure)
                    rows.append(whole)
                    by_layer.extend(single)
                move("compare", done * len(wanted) + k + 1, len(pairs) * len(wanted))
    if not rows:
        raise DataError("these runs have no measure in common that could be compared")
    named = {arm.name: list(arm.runs) for arm in arms}
    return Comparison(_table(rows), _table(by_layer), named, notes)


def _tables(runs: Sequence[Run], asked: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the tables to compare, and sentences on those that are left out."""
    known = {run.path: tables_of(run) for run in runs}
    if asked is not None:
        for name in asked:
            if name not in COMPARED:
                near = did_you_mean(name, COMPARED) or f"; there are {', '.join(COMPARED)}"
                raise SpecError(f"{name!r} is no table that can be compared{near}")
            for run in runs:
                if name not in known[run.path]:
                    run.table(name)  # which says what there is
        return [name for name in COMPARED if name in asked], []
    notes = []
    for name in COMPARED:
        without = [str(run.path) for run in runs if name not in known[run.path]]
        if 0 < len(without) < len(runs):
            notes.append(f"{name} is left out: not in {', '.join(without)}")
    other = set.intersection(*known.values()) - set(COMPARED) - set(LEFT_OUT)
    if other:
        notes.append(f"not compared, since polysem does not know them: {', '.join(sorted(other))}")
    return [n for n in COMPARED if all(n in tables for tables in known.values())], notes


def _table(rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(MEANINGS))
    table["q"] = table["q"].astype(float)
    for _, some in table.groupby(["arm", "other"], sort=False):
        tested = some.index[some["p"].notna()]
        if len(tested):
            p = table.loc[tested, "p"].to_numpy(dtype=float)
            table.loc[tested, "q"] = scipy.stats.false_discovery_control(p)
    table.attrs = {"columns": MEANINGS}
    return table


def _rows(
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
    parts = _Parts.of(measure, n, single)
    whole = common | parts.row()
    if not measure.site:
        return whole, []
    each = [common | {"site": site} | parts.at([k]).row() for k, site in enumerate(measure.layers)]
    return whole, each


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
    def of(cls, measure: Measure, n: int, single: bool) -> _Parts:
        values, cells = measure.values, measure.cells
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
                    effects.shuffled_deltas(column[:n], column[n:], layer=k)
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
            "p": p, "least_p": least, "exchanged": self._exchanged(), "resampled": self._drawn(), "layers": values.shape[1],
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
            return float((means >= means[0] * (1 - 1e-9)).mean()), 1 / (effects.DRAWS + 1)
        if self.deltas is not None:
            return effects.swapped_arms(self.deltas.mean(0), n)
        means = self.values.mean(1)
        return effects.swapped_arms(means[:, None] - means, n)

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


def _named(name: str, estimate: Estimate, ends: object) -> dict[str, object]:
    low, high = ends(estimate)  # type: ignore[operator]
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def _of_images(first: Floats, second: Floats) -> dict[str, object]:
    """Return the row of a measure of images [run, image], both arms on the same ones."""
    a, b = first.mean(0), second.mean(0)
    difference, p = effects.paired(a - b)
    found: dict[str, object] = {}
    for name, values in (("value", a), ("other_value", b)):
        mean = Estimate(float(values.mean()), float(values.var(ddof=1)) / len(a), len(a) - 1)
        found |= _named(name, mean, Estimate.interval)
    return found | _named("difference", difference, Estimate.interval) | {
        "p": p, "least_p": 1 / (effects.DRAWS + 1), "exchanged": "images", "resampled": "image", "layers": 1,
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
