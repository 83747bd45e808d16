"""The page of evolutions: how units came to be, from snapshots of the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polysem.report.page import number
from polysem.report.site.extras import Extra, Whole, shrunk_picture
from polysem.report.site.parts import Content, Missing, rounded
from polysem.store.evolution import Evolution

__all__ = ["evolution"]

#: What is drawn of each site over the steps, and its title.
_LINES = {
    "cka_final": "Likeness to the final network (CKA)",
    "born_correlation": "Share of faces that are what they will be, by activation",
    "born_label": "Share of faces that have their final label",
    "label_churn": "Share of faces whose label changed since the snapshot before",
    "excess_rank": "Excess rank, median",
    "ms_above_chance": "Monosemanticity above chance, median",
}

_PICTURES = {
    "labels": "Flow of labels from snapshot to snapshot",
    "scores": "Distribution of the headline score over the steps, site by site",
}


def evolution(whole: Whole) -> Content:
    """Return the page of all evolutions that were given."""
    given = whole.of_kind("evolution")
    missing = []
    if not given:
        command = (
            "polysem evolve --checkpoints 'snapshots/*.safetensors' --data D --out EVOLUTION; "
            "polysem report RUN EVOLUTION --out SITE"
        )
        missing.append(Missing("Evolution of units over the training", command))
    return Content(
        {"evolutions": [_one(extra, whole) for extra in given]},
        missing=missing,
        charts=bool(given),
        empty=not given,
    )


def _one(extra: Extra, whole: Whole) -> dict[str, Any]:
    opened = Evolution.open(extra.path)
    layers = opened.table("layers")
    births = opened.table("births")
    facts = opened.manifest
    pictures = [
        (shrunk_picture(file, whole.folder, f"{extra.key}/{name}"), words)
        for name, words in _PICTURES.items()
        if (file := extra.path / "pictures" / f"{name}.png").is_file()
    ]
    strips = [
        (
            shrunk_picture(file, whole.folder, f"{extra.key}/unit-{i}"),
            f"Exemplars of unit {one['unit']} of {one['site']}, snapshot by snapshot",
        )
        for i, one in enumerate(facts["units_shown"])
        if (file := extra.path / "pictures" / str(one["picture"]).split("/")[-1]).is_file()
    ]
    columns = [name for name in _LINES if name in layers and layers[name].notna().any()]
    last = layers[layers["step"] == opened.steps[-1]]
    return {
        "key": extra.key,
        "name": extra.name,
        "title": f"{facts['model']['name']}, steps {opened.steps[0]:,} to {opened.steps[-1]:,}",
        "lead": f"{len(opened.steps)} snapshots, {facts['data']['n_images']:,} images of "
        f"{facts['data']['name']}.",
        "notes": facts["notes"],
        "figures": _figures(births, last),
        "charts": [
            {"id": f"{extra.key}-{name}", "title": _LINES[name],
             "figure": _over_steps(layers, name)}
            for name in columns
        ],
        "pictures": pictures,
        "strips": strips,
        "columns": ["site", "step", *columns],
        "rows": [
            [row["site"], f"{row['step']:,}", *(number(row[name]) for name in columns)]
            for row in layers.to_dict("records")
        ],
    }  # fmt: skip


def _figures(births: pd.DataFrame, last: pd.DataFrame) -> list[dict[str, str]]:
    found = []
    for column, title in {
        "birth_correlation": "Step at which half of the faces are themselves",
        "birth_label": "Step at which half of the labels are final",
    }.items():
        known = births[column].dropna().astype(float)
        if len(known):
            found.append({
                "name": title, "value": f"{np.median(known):,.0f}", "interval": "",
                "meaning": f"median of {len(known):,} of {len(births):,} faces of units",
            })  # fmt: skip
    accuracy = last["accuracy"].dropna()
    if len(accuracy):
        found.append({
            "name": "Accuracy in the end", "value": f"{accuracy.iloc[0]:.1%}", "interval": "",
            "meaning": "of the last snapshot on these images",
        })  # fmt: skip
    return found


def _over_steps(layers: pd.DataFrame, column: str) -> dict[str, Any]:
    """Return a line for each site over the steps, early sites light and late ones dark."""
    sites = list(dict.fromkeys(layers["site"]))
    traces = []
    for k, site in enumerate(sites):
        mine = layers[layers["site"] == site]
        share = k / max(1, len(sites) - 1)
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": site,
            "x": mine["step"].tolist(), "y": rounded(mine[column].to_numpy(dtype=float)),
            "line": {"color": f"hsl({round(210 - 190 * share)}, 62%, 52%)", "width": 1.8},
            "marker": {"size": 5},
            "hovertemplate": "step %{x}: %{y}<extra>%{fullData.name}</extra>",
        })  # fmt: skip
    return {
        "data": traces,
        "layout": {
            "height": 380,
            "xaxis": {"title": {"text": "training step"}},
            "legend": {"font": {"size": 11}},
            "hovermode": "closest",
        },
    }
