"""Groups of units that answer to the same things: a map, the groups, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from polysem.analysis import grouping
from polysem.analysis.faces import Face, chosen_sites, faces
from polysem.analysis.unit_features import (
    Features,
    centroid_features,
    class_features,
    default_features,
    face_table,
)
from polysem.errors import DataError
from polysem.progress import progress_bar
from polysem.store.additions import add_arrays, add_table
from polysem.store.run import Run

__all__ = ["FEATURES", "MEANINGS", "QUALITY", "SUMMARY", "clusters"]

#: What the columns of ``tables/clusters.parquet`` hold.
MEANINGS = {
    "site": "where in the network",
    "unit": "index of the unit at its site",
    "tail": "upper or lower; the two faces of a unit may lie in different groups",
    "cluster": "group, counted from 0, the largest first; -1: in none",
    "firmness": "how firmly the face belongs to its group, 0 to 1 (HDBSCAN)",
    "map_x": "place on the map (UMAP, cosine); distances between far groups mean little",
    "map_y": "its other coordinate",
}

#: What the columns of ``tables/cluster_summary.parquet`` hold.
SUMMARY = {
    "cluster": "group, counted from 0",
    "faces": "faces of units in the group",
    "sites": "sites that they are at",
    "main_site": "the site with most of them",
    "tightness": "mean cosine of the faces with the group's centre, at most 1",
    "top_class": "class with the highest mean profile; none without labels",
}

#: What the columns of ``tables/cluster_quality.parquet`` hold.
QUALITY = {
    "feature": "what faces were compared by: centroid (mean embedding weighted by activation) or "
    "class (profile over classes)",
    "faces": "faces compared; constant units are left out",
    "min_size": "faces that a group must have",
    "clusters": "groups found",
    "grouped_share": "share of faces in a group, 0 to 1",
    "stability": "mean adjusted Rand index with groups of bootstrap samples of faces; 1: the same "
    "every time, 0: chance",
    "stability_low": "the lowest of 10 samples",
    "silhouette": "mean silhouette by the cosine, faces in no group counted 0; -1 to 1",
    "null_silhouette": "its mean where each dimension is permuted among the faces",
    "p": "chance of a silhouette as high without groups, by 20 permutations: at least 1 / 21",
}

#: Features by the name that the command takes.
FEATURES: dict[str, Callable[[list[Face]], Features]] = {
    "centroid": centroid_features,
    "class": class_features,
}


def clusters(
    run: Run,
    *,
    sites: str | None = None,
    feature: str | None = None,
    min_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Group the units of a run and keep map, groups and their quality in it.

    Parameters
    ----------
    run : Run
    sites : str, optional
        Globs of sites, comma-separated; by default all.
    feature : {"centroid", "class"}, optional
        What units are compared by; by default the centroids of embeddings, or profiles over
        classes where the images have none.
    min_size : int, optional
        Faces that a group must have; by default 5, or 0.2 % of all where that is more.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    DataFrame
        One row a face that is not constant, columns as in `MEANINGS`. Written to
        ``tables/clusters.parquet``, with ``cluster_summary``, ``cluster_quality`` and
        ``clusters.zarr``: the directions that were compared, and the groups' centres.

    Raises
    ------
    DataError
        If fewer than three faces can be compared, or the run has neither embeddings nor labels.
    """
    name = feature or default_features(run)
    if name == "class" and run.images["label"].isna().all():
        raise DataError(
            f"{run.path} has neither embeddings nor labels to compare units by; make embeddings "
            f"with: polysem embed {run.path}"
        )
    of_sites = [face for site in chosen_sites(run, sites) for face in faces(run, site)]
    steps = ("features", "groups", "stability", "null", "map")
    with progress_bar(unit="steps", show=progress) as move:

        def step(what: str) -> None:
            move(what, steps.index(what), len(steps))

        step("features")
        directions = FEATURES[name](of_sites)
        living = np.asarray(np.isfinite(directions).all(1))
        table = face_table(of_sites).loc[living].reset_index(drop=True)
        directions = directions[living]
        if len(directions) < 3:
            raise DataError(
                f"{len(directions)} faces of units of {run.path} change at all; groups need three"
            )
        step("groups")
        points = grouping.reduced(directions)
        size = max(2, min_size or max(5, round(0.002 * len(points))))
        labels, firmness = grouping.find_groups(points, size)
        labels = _by_size(labels)
        step("stability")
        again = grouping.stability(points, labels, size)
        step("null")
        null = grouping.null_silhouettes(directions, size)
        step("map")
        table["cluster"], table["firmness"] = labels, firmness
        table[["map_x", "map_y"]] = grouping.map_points(directions)
    observed = grouping.covered_silhouette(points, labels)
    quality = {
        "feature": name,
        "faces": len(points),
        "min_size": size,
        "clusters": int(labels.max()) + 1,
        "grouped_share": float((labels != grouping.NO_GROUP).mean()),
        "stability": float(np.mean(again)),
        "stability_low": float(np.min(again)),
        "silhouette": observed,
        "null_silhouette": float(np.mean(null)),
        "p": (1 + sum(value >= observed for value in null)) / (1 + len(null)),
    }
    centres = _centres(directions, labels)
    add_arrays(run, "clusters", _arrays(directions, centres))
    summary = _summary(run, of_sites, living, table, directions, centres)
    add_table(run, "cluster_summary", summary, meanings=SUMMARY)
    add_table(run, "cluster_quality", pd.DataFrame([quality]), meanings=QUALITY)
    add_table(run, "clusters", table[list(MEANINGS)], meanings=MEANINGS)
    table.attrs = {"columns": MEANINGS}
    return table


def _by_size(labels: grouping.Labels) -> grouping.Labels:
    """Renumber groups, the largest first."""
    found, sizes = np.unique(labels[labels != grouping.NO_GROUP], return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    new = np.full(len(found) + 1, grouping.NO_GROUP)  # the last is for no group
    new[found[order]] = np.arange(len(found))
    return new[labels]


def _centres(directions: Features, labels: grouping.Labels) -> Features:
    n = int(labels.max()) + 1
    sums = np.zeros((n, directions.shape[1]))
    np.add.at(sums, labels[labels >= 0], directions[labels >= 0])
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(length > 0, length, 1)).astype(np.float32)


def _arrays(directions: Features, centres: Features) -> xr.Dataset:
    return xr.Dataset(
        {
            "direction": (
                ("face", "dim"), directions,
                {"long_name": "what each face was compared by, of length 1; rows as in "
                 "tables/clusters.parquet"},
            ),
            "centre": (
                ("cluster", "dim"), centres,
                {"long_name": "mean direction of each group, of length 1"},
            ),
        }
    )  # fmt: skip


def _summary(
    run: Run,
    of_sites: list[Face],
    living: np.ndarray,
    table: pd.DataFrame,
    directions: Features,
    centres: Features,
) -> pd.DataFrame:
    named = run.classes
    try:
        profiles = class_features(of_sites)[living]
    except ValueError:  # no labels, or too few classes
        profiles = None
    rows = []
    for cluster, centre in enumerate(centres):
        mine = (table["cluster"] == cluster).to_numpy()
        sites = table.loc[mine, "site"].value_counts()
        top = None
        if profiles is not None:
            best = int(profiles[mine].mean(0).argmax())
            seen = np.flatnonzero(of_sites[0].units["class_count"].to_numpy() > 0)
            top = str(seen[best]) if named is None else named[seen[best]]
        rows.append(
            {
                "cluster": cluster,
                "faces": int(mine.sum()),
                "sites": len(sites),
                "main_site": sites.index[0],
                "tightness": float((directions[mine] @ centre).mean()),
                "top_class": top,
            }
        )
    return pd.DataFrame(rows, columns=list(SUMMARY))
