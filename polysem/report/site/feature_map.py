"""The feature map: every face of every unit where it is among the others, from UMAP."""

from __future__ import annotations

from typing import Any

import numpy as np

from polysem.report.page import number
from polysem.report.site.faces import all_faces, scores_of
from polysem.report.site.parts import Content, Missing, Shown, rounded, write_data

__all__ = ["feature_map"]


def feature_map(shown: Shown) -> Content:
    """Write the places of all faces on the map and return its page."""
    run = shown.run
    if not run.has_table("clusters"):
        command = f"polysem clusters {run.path}"
        return Content(
            {"quality": None}, missing=[Missing("Map and groups of units", command)], empty=True
        )
    faces = all_faces(run)
    placed = np.flatnonzero(faces["map_x"].notna().to_numpy())
    payload: dict[str, Any] = {
        "row": placed.tolist(),
        "x": rounded(faces["map_x"].to_numpy()[placed]),
        "y": rounded(faces["map_y"].to_numpy()[placed]),
    }
    data = write_data(shown, "map", payload)
    summary = run.table("cluster_summary").to_dict("records")
    return Content(
        {
            "quality": _quality(run.table("cluster_quality").iloc[0].to_dict()),
            "n_placed": len(placed),
            "scores": scores_of(run, faces),
            "groups": [_group(row) for row in summary],
        },
        data=[f"data/{shown.key}/images.js", f"data/{shown.key}/atlas.js", data],
        charts=True,
    )


def _quality(row: dict[Any, Any]) -> str:
    basis = {
        "centroid": "mean embedding weighted by activation",
        "class": "profile over classes",
    }.get(row["feature"], row["feature"])
    return (
        f"{row['clusters']:,} groups of {row['faces']:,} faces, which were compared by {basis}; "
        f"{row['grouped_share']:.0%} of faces are in one. Stability {number(row['stability'])} "
        f"(adjusted Rand index, bootstrap); silhouette {number(row['silhouette'])}, without groups "
        f"{number(row['null_silhouette'])} (p = {number(row['p'], 2)})."
    )


def _group(row: dict[Any, Any]) -> dict[str, Any]:
    top = row["top_class"]
    return {
        **row,
        "top_class": top if isinstance(top, str) else "",
        "tightness": number(row["tightness"]),
    }
