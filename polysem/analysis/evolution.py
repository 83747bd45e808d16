"""How units come to be: from one run for each snapshot of a training to tables over time.

A unit keeps its index while one network trains, so that "the same unit earlier" is known. Matching
by what units do says whether index and function part: a unit whose match is another one has taken
over what that one does in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from polysem.analysis.site_over_time import site_over_time
from polysem.analysis.snapshot_labels import LabelSource, snapshot_labels
from polysem.analysis.trajectories import (
    BIRTHS,
    LAYERS,
    TRAJECTORIES,
    Follow,
    birth_table,
    layer_table,
    trajectory_table,
)
from polysem.errors import DataError
from polysem.progress import progress_bar
from polysem.store.run import Run

__all__ = ["Tables", "evolution_tables"]


@dataclass(frozen=True)
class Tables:
    """What `evolution_tables` finds.

    Attributes
    ----------
    trajectories : DataFrame
        A row for each site, tail, unit and step; columns `TRAJECTORIES`.
    births : DataFrame
        A row for each site, tail and unit; columns `BIRTHS`.
    layers : DataFrame
        A row for each site and step; columns `LAYERS`.
    """

    trajectories: pd.DataFrame
    births: pd.DataFrame
    layers: pd.DataFrame


def evolution_tables(
    runs: Mapping[int, Run],
    *,
    labels: LabelSource | None,
    follow: Follow = "index",
    threshold: float = 0.7,
    progress: bool = True,
) -> Tables:
    """Follow every unit of a network through the snapshots of its training.

    Parameters
    ----------
    runs : mapping of int to Run
        By training step, earliest first; on the same images, probed with ``pooled``, with scores
        (``polysemanticity``) and, for concepts, names.
    labels : {"concepts", "classes"} or None
        What units are called by.
    follow : {"index", "match"}
        Which unit of an earlier snapshot labels and scores are taken from.
    threshold : float, default 0.7
        Correlation from which on a unit counts as its final self; 0.7 is about half of the
        variance.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Raises
    ------
    DataError
        If there are fewer than two runs, on other images, sites or units.
    """
    _require_alike(list(runs.values()))
    sites = list(runs.values())[-1].sites
    scores = {step: run.table("polysemanticity") for step, run in runs.items()}
    called = {} if labels is None else {s: snapshot_labels(r, labels) for s, r in runs.items()}
    accuracy = [run.images["correct"].astype("Float64").mean() for run in runs.values()]
    right = pd.array(accuracy, dtype="Float64").to_numpy(dtype=float, na_value=float("nan"))
    parts: dict[str, list[pd.DataFrame]] = {"trajectories": [], "births": [], "layers": []}
    with progress_bar(unit="sites", show=progress) as move:
        for done, site in enumerate(sites):
            found = site_over_time(list(runs.values()), site)
            followed = trajectory_table(site, found, scores, called, follow=follow)
            born = birth_table(followed, threshold=threshold, follow=follow)
            layers = layer_table(found, followed, born, right)
            for name, part in zip(parts, (followed, born, layers), strict=True):
                parts[name].append(part)
            move("follow", done + 1, len(sites))
    tables = Tables(*(pd.concat(some, ignore_index=True) for some in parts.values()))
    tables.trajectories.attrs = {"columns": TRAJECTORIES}
    tables.births.attrs = {"columns": BIRTHS}
    tables.layers.attrs = {"columns": LAYERS}
    return tables


def _require_alike(runs: list[Run]) -> None:
    """Refuse runs that no unit can be followed through; DataError says why."""
    if len(runs) < 2:
        raise DataError("units are followed through two snapshots or more, and there is one run")
    first = runs[0]
    for run in runs:
        pair = f"{first.path} and {run.path}"
        if first.manifest["data"]["fingerprint"] != run.manifest["data"]["fingerprint"]:
            raise DataError(f"{pair} were probed on different images: units cannot be matched")
        if not first.images["image"].equals(run.images["image"]):
            raise DataError(f"{pair} left out different images: units cannot be matched")
        units = [{s: f["n_units"] for s, f in r.manifest["sites"].items()} for r in (first, run)]
        if units[0] != units[1]:
            raise DataError(f"{pair} have different sites or units: they are not of one network")
        if not run.manifest["options"].get("pooled"):
            raise DataError(f"{run.path} lacks activations of all images; probe it with --pooled")
