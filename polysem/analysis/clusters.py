"""Groups of units, or of their facets, that answer to the same things, and how far to trust them.

What is compared are faces of units (a unit has two where it fires both ways) or facets, the parts
that the exemplars of a face fall into. Tables of facets are named as those of faces, after
``facet_``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from polysem.analysis import grouping
from polysem.analysis.compared import Compared, compared_faces, compared_facets
from polysem.analysis.unit_features import Features
from polysem.errors import SpecError
from polysem.progress import progress_bar
from polysem.store.additions import add_arrays, add_table
from polysem.store.run import Run

__all__ = [
    "FACET_MEANINGS", "FACET_QUALITY", "FACET_SUMMARY", "MEANINGS", "QUALITY",
    "SUMMARY", "Of", "clusters",
]  # fmt: skip

#: What is grouped.
Of = Literal["units", "facets"]

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

#: What the columns of ``tables/facet_clusters.parquet`` hold.
FACET_MEANINGS = {
    "site": MEANINGS["site"],
    "unit": MEANINGS["unit"],
    "tail": "upper or lower: the face of the unit whose exemplars were divided",
    "facet": "0 for the one with most exemplars, as in tables/facets.parquet",
    "cluster": MEANINGS["cluster"],
    "firmness": "how firmly the facet belongs to its group, 0 to 1 (HDBSCAN)",
    "map_x": MEANINGS["map_x"],
    "map_y": MEANINGS["map_y"],
}

#: What the columns of ``tables/facet_cluster_summary.parquet`` hold.
FACET_SUMMARY = {
    "cluster": SUMMARY["cluster"],
    "facets": "facets in the group",
    "sites": SUMMARY["sites"],
    "main_site": SUMMARY["main_site"],
    "tightness": "mean cosine of the facets with the group's centre, at most 1",
    "top_class": "commonest class of the facets' strongest exemplars; none without labels",
}

#: What the columns of ``tables/facet_cluster_quality.parquet`` hold.
FACET_QUALITY = {
    "feature": "what facets were compared by: exemplars (mean embedding of their exemplars)",
    "facets": "facets compared",
    "min_size": "facets that a group must have",
    **{name: words.replace("faces", "facets") for name, words in list(QUALITY.items())[3:]},
}


def clusters(
    run: Run,
    of: Of = "units",
    *,
    sites: str | None = None,
    feature: str | None = None,
    min_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Group the units of a run, or their facets, and keep map, groups and quality in it.

    Parameters
    ----------
    run : Run
    of : {"units", "facets"}, default "units"
        Facets are those that ``polysem facets`` found.
    sites : str, optional
        Globs of sites, comma-separated; by default all.
    feature : {"centroid", "class"}, optional
        What units are compared by; by default the centroids of embeddings, or profiles over
        classes where the images have none. Facets are compared by the mean embedding of their
        exemplars.
    min_size : int, optional
        Faces or facets that a group must have; by default 5, or 0.2 % of all where that is more.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    DataFrame
        One row a face that is not constant, columns as in `MEANINGS`; or a facet, columns as in
        `FACET_MEANINGS`. Written to ``tables/clusters.parquet``, with ``cluster_summary``,
        ``cluster_quality`` and ``clusters.zarr``: the directions that were compared, and the
        groups' centres. Of facets, all these names start with ``facet_``.

    Raises
    ------
    PolysemError
        If fewer than three faces or facets can be compared, or the run has neither embeddings nor
        labels, or no facets.
    """
    if of == "facets" and feature is not None:
        raise SpecError(
            "facets are compared by the embeddings of their exemplars: leave out the feature"
        )
    steps = ("features", "groups", "stability", "null", "map")
    with progress_bar(unit="steps", show=progress) as move:

        def step(what: str) -> None:
            move(what, steps.index(what), len(steps))

        step("features")
        compared = (
            compared_facets(run, sites) if of == "facets" else compared_faces(run, sites, feature)
        )
        directions, table = compared.directions, compared.keys.copy()
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
    centres = _centres(directions, labels)
    quality: list[float | str] = [
        compared.feature,
        len(points),
        size,
        len(centres),
        float((labels != grouping.NO_GROUP).mean()),
        float(np.mean(again)),
        float(np.min(again)),
        observed,
        float(np.mean(null)),
        (1 + sum(value >= observed for value in null)) / (1 + len(null)),
    ]
    _keep(run, of, compared, table, centres, quality)
    table.attrs = {"columns": MEANINGS if of == "units" else FACET_MEANINGS}
    return table


def _keep(
    run: Run,
    of: Of,
    compared: Compared,
    table: pd.DataFrame,
    centres: Features,
    quality: list[float | str],
) -> None:
    """Write tables and arrays into the run; the main table last, so that it has all the others."""
    if of == "units":
        start, meanings, columns, words = "", MEANINGS, SUMMARY, QUALITY
    else:
        start, meanings, columns, words = "facet_", FACET_MEANINGS, FACET_SUMMARY, FACET_QUALITY
    rows = _summary(compared, table, centres)
    summary = pd.DataFrame(rows, columns=list(columns))
    add_arrays(run, f"{start}clusters", _arrays(compared.directions, centres, f"{start}clusters"))
    add_table(run, f"{start}cluster_summary", summary, meanings=columns)
    found = pd.DataFrame([quality], columns=list(words))
    add_table(run, f"{start}cluster_quality", found, meanings=words)
    add_table(run, f"{start}clusters", table[list(meanings)], meanings=meanings)


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


def _arrays(directions: Features, centres: Features, table: str) -> xr.Dataset:
    return xr.Dataset(
        {
            "direction": (
                ("row", "dim"), directions,
                {"long_name": f"what each row of tables/{table}.parquet was compared by, of "
                 "length 1"},
            ),
            "centre": (
                ("cluster", "dim"), centres,
                {"long_name": "mean direction of each group, of length 1"},
            ),
        }
    )  # fmt: skip


def _summary(
    compared: Compared, table: pd.DataFrame, centres: Features
) -> list[tuple[int, int, int, str, float, str | None]]:
    """Return a row for each group: number, size, sites, main site, tightness, top class."""
    rows = []
    for cluster, centre in enumerate(centres):
        mine = (table["cluster"] == cluster).to_numpy()
        sites = table.loc[mine, "site"].value_counts()
        tightness = float((compared.directions[mine] @ centre).mean())
        size, top = int(mine.sum()), compared.top_class(mine)
        rows.append((cluster, size, len(sites), str(sites.index[0]), tightness, top))
    return rows
