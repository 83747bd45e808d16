"""The first page: what was probed, the headline figures with intervals, and what to beware of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

from polysem.medians import median_interval
from polysem.report.page import number
from polysem.report.site.extras import Whole
from polysem.report.site.faces import all_faces
from polysem.report.site.parts import Content, Shown
from polysem.store.run import Run

__all__ = ["Figure", "overview"]

#: Share of dead units of a site from which a warning is due.
_MANY_DEAD = 0.05


@dataclass(frozen=True)
class Figure:
    """One headline figure.

    Attributes
    ----------
    name, value, interval, meaning : str
        The interval is empty where there is none.
    """

    name: str
    value: str
    interval: str
    meaning: str


def overview(whole: Whole) -> Content:
    """Return the first page of a site."""
    return Content({"overviews": [_one(shown) for shown in whole.runs]})


def _one(shown: Shown) -> dict[str, Any]:
    run = shown.run
    faces = all_faces(run)
    return {
        "key": shown.key,
        "name": shown.name,
        "facts": _facts(run),
        "figures": _figures(run, faces),
        "sites": _sites(run, faces),
        "warnings": _warnings(run, faces),
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    facts, model, data = run.manifest, run.manifest["model"], run.manifest["data"]
    height, width = model["transform"]["size"]
    classes = f"{len(data['classes']):,} classes" if data["classes"] else "no class names"
    return [
        ("Model", model["name"]),
        ("Weights", f"{model['spec']}, digest {model['sha256'][:12]}"),
        ("Input", f"{width} × {height} px"),
        ("Images", f"{facts['n_images']:,} of {data['name']}"),
        ("Labels", classes if data["labelled"] else "none"),
        ("Recorded", f"{sum(s['n_units'] for s in facts['sites'].values()):,} units at "
         f"{len(facts['sites'])} sites in {facts['seconds']:,.1f} s"),
    ]  # fmt: skip


def _figures(run: Run, faces: pd.DataFrame) -> list[Figure]:
    figures = []
    correct = run.images["correct"].dropna().astype(bool)
    if len(correct):
        hits, n = int(correct.sum()), len(correct)
        low, high = binomtest(hits, n).proportion_ci(0.95, "wilson")
        figures.append(
            Figure("Accuracy", f"{hits / n:.1%}", f"{low:.1%} to {high:.1%}",
                   f"{hits:,} of {n:,} images; Wilson's 95 % interval over images")
        )  # fmt: skip
    figures += _scores(run)
    if run.has_table("labels"):
        labels = run.table("labels")
        best = labels[labels["rank"] == 1]
        figures.append(
            _share("Units with a fitting name", best["named"].to_numpy(dtype=bool),
                   "of the faces that were compared with the vocabulary")
        )  # fmt: skip
    if run.has_table("unit_facets"):
        units = run.table("unit_facets")
        living = units.loc[units["facets"] > 0, "facets"].to_numpy()
        figures.append(_share("More than one facet", living > 1, "of living faces of units"))
    if run.has_table("cluster_quality"):
        row = run.table("cluster_quality").iloc[0]
        figures.append(
            Figure("Groups of units", f"{row['clusters']:,}",
                   f"stability {number(row['stability'])}, p = {number(row['p'], 2)}",
                   f"{row['grouped_share']:.0%} of {row['faces']:,} faces are in one")
        )  # fmt: skip
    dead = faces.drop_duplicates(["site", "unit"])["dead"].to_numpy(dtype=bool)
    figures.append(
        Figure("Dead units", f"{dead.mean():.1%}", "", f"{dead.sum():,} of {len(dead):,} gave the "
               "same value on every image")
    )  # fmt: skip
    return figures


def _scores(run: Run) -> list[Figure]:
    if not run.has_table("polysemanticity"):
        return []
    table = run.table("polysemanticity")
    neurons = table[table["site"].str.endswith("mlp.hook_post")]
    chosen, which = (neurons, "MLP neurons") if len(neurons) else (table, "units")
    names = {
        "excess_rank": ("Things that excite a unit", "excess rank, 1 to 32, lower is more "
                        "monosemantic"),
        "ms_above_chance": ("Monosemanticity above chance", "0 at random, 1 at best"),
        "effective_classes": ("Effective classes", "1 to the number of classes, lower is more "
                              "selective"),
    }  # fmt: skip
    figures = []
    for column, (name, meaning) in names.items():
        median, low, high = median_interval(chosen[column].to_numpy())
        if np.isfinite(median):
            figures.append(
                Figure(name, number(median), f"{number(low)} to {number(high)}",
                       f"{meaning}: median over faces of {which}, 95 % bootstrap interval")
            )  # fmt: skip
    return figures


def _share(name: str, hits: npt.NDArray[np.bool_], of: str) -> Figure:
    if not len(hits):
        return Figure(name, "–", "", of)
    low, high = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, "wilson")
    return Figure(
        name, f"{hits.mean():.1%}", f"{low:.1%} to {high:.1%}",
        f"{int(hits.sum()):,} of {len(hits):,} {of}; Wilson's 95 % interval",
    )  # fmt: skip


def _sites(run: Run, faces: pd.DataFrame) -> dict[str, Any]:
    """Return a table with a row a site: medians over units, with the middle half as a bar."""
    faces = faces[faces["tail"] == "upper"]
    columns = {
        "kurtosis": "Kurtosis", "sparsity": "Sparsity", "excess_rank": "Excess rank",
        "ms_above_chance": "Monosemanticity", "effective_classes": "Effective classes",
    }  # fmt: skip
    kept = {
        name: title
        for name, title in columns.items()
        if name in faces and faces[name].notna().any()
    }
    ends = {name: faces[name].quantile([0.02, 0.98]).to_list() for name in kept}
    rows = []
    for site, facts in run.manifest["sites"].items():
        here = faces[faces["site"] == site]
        cells = [_cell(here[name].to_numpy(dtype=float), *ends[name]) for name in kept]
        rows.append({
            "site": site, "units": facts["n_units"], "dead": int(here["dead"].sum()),
            "cells": cells,
        })  # fmt: skip
    return {"columns": list(kept.values()), "rows": rows}


def _cell(values: npt.NDArray[np.float64], low: float, high: float) -> dict[str, Any]:
    """Return a median, and where the middle half of units lies between the ends, in per cent."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {"median": "–"}
    quartiles = np.quantile(known, [0.25, 0.5, 0.75])
    width = (high - low) or 1.0
    at = np.clip((quartiles - low) / width, 0, 1) * 100
    return {
        "median": number(float(quartiles[1])),
        "range": f"{number(float(quartiles[0]))} to {number(float(quartiles[2]))}",
        "left": f"{at[0]:.1f}", "width": f"{max(1.0, at[2] - at[0]):.1f}", "middle": f"{at[1]:.1f}",
    }  # fmt: skip


def _warnings(run: Run, faces: pd.DataFrame) -> list[str]:
    facts = run.manifest
    found = []
    if facts["status"] != "complete":
        found.append(
            f"The probe is {facts['status']}: {facts['n_images']:,} of "
            f"{facts['data']['n_images']:,} images were seen."
        )
    if facts["skipped"]:
        first = facts["skipped"][0]
        found.append(
            f"{len(facts['skipped']):,} images could not be read and are left out, such as "
            f"{first['key']} ({first['reason']})."
        )
    dead = faces.drop_duplicates(["site", "unit"]).groupby("site")["dead"].mean()
    many = dead[dead > _MANY_DEAD]
    if len(many):
        worst = many.sort_values(ascending=False)
        found.append(
            f"{len(many)} of {len(dead)} sites have more than {_MANY_DEAD:.0%} dead units, most "
            f"of all {worst.index[0]} with {worst.iloc[0]:.0%}."
        )
    return [*found, *facts["notes"]]
