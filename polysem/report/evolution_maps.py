"""Layers over training as heat maps: how near the final network, and how much each step moved."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polysem.report.page import (
    INNER,
    MARGIN,
    WIDTH,
    figure_of,
    fit,
    page,
    panel,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.store.evolution import Evolution

__all__ = ["evolution_maps"]

_MAPS = {
    "cka_final": "CKA with the final network",
    "cka_previous": "CKA with the snapshot before",
    "born_correlation": "Share of faces born",
}

#: Inches: names of sites, gap between maps, height of a row.
_WORDS, _GAP, _ROW = 1.6, 0.25, 0.27


@styled
def evolution_maps(evolution: Evolution) -> Figure:
    """Draw CKA with the final network and the preceding snapshot, and births, site by step.

    Returns
    -------
    Figure
        Ten inches wide.
    """
    table = evolution.table("layers")
    sites = [str(site) for site in table["site"].unique()]
    height = _ROW * len(sites)
    sheet = page(WIDTH, 1.15 + height + 0.85)
    manifest = evolution.manifest
    accuracy = table.groupby("step")["accuracy"].first()
    words = f"{manifest['model']['name']}, {manifest['data']['n_images']:,} images"
    if accuracy.notna().all():
        said = ", ".join(f"{100 * share:.0f}" for share in accuracy)
        words += f", accuracy {said} %"
    write_title(sheet, "Layers over training", words)
    width = (INNER - _WORDS - 2 * _GAP) / len(_MAPS)
    for i, (name, heading) in enumerate(_MAPS.items()):
        left = MARGIN + _WORDS + i * (width + _GAP)
        write(sheet, left, 1.05, heading, width=width, size=8, weight="bold")
        axes = panel(sheet, left, 1.15, width, height)
        values = table.pivot(index="site", columns="step", values=name).loc[sites]
        _draw(axes, values, named=i == 0)
    notes = [
        "CKA: linear, of pooled activations over images; 1: the same up to rotation. Born: "
        f"correlation with the final self of at least {manifest['threshold']:g} from then on."
    ]
    write_notes(sheet, 1.15 + height + 0.68, notes)
    return figure_of(sheet)


def _draw(axes: Axes, values: pd.DataFrame, *, named: bool) -> None:
    numbers = values.to_numpy(dtype=float)
    rows, columns = numbers.shape
    axes.pcolormesh(numbers, cmap="cividis", vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
    axes.invert_yaxis()
    if columns <= 10:
        for (y, x), value in np.ndenumerate(numbers):
            if np.isfinite(value):
                colour = "white" if value < 0.55 else "black"
                axes.text(x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center", size=6.5,
                          color=colour)  # fmt: skip
    every = max(1, -(-columns // 10))
    shown = np.arange(0, columns, every)
    steps = [int(step) for step in values.columns]
    axes.set_xticks(shown + 0.5, [f"{steps[i]:,}" for i in shown])
    names = [fit(str(site), _WORDS - 0.1, size=7, keep="end") for site in values.index]
    axes.set_yticks(np.arange(rows) + 0.5, names if named else [])
    axes.set_xlabel("step")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
