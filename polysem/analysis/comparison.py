"""Arms of networks against each other: every table that their runs share, with intervals.

An arm is one way of making networks (B-cos, with DropHead …), its runs are networks of different
seeds. What an arm of one network shows is of that network, and the table says so: units are not
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd
import scipy.stats

from polysem.analysis.arms import arms_of, checked, sites_of, what_to_know
from polysem.analysis.effect_rows import rows_of
from polysem.analysis.measures import COMPARED, LEFT_OUT, measures, tables_of
from polysem.errors import DataError, SpecError, did_you_mean
from polysem.progress import progress_bar
from polysem.store.run import Run

__all__ = ["MEANINGS", "Comparison", "compare_runs"]

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
                    whole, single = rows_of(arm, other, measure)
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
