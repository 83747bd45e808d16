"""The map of units or facets: which groups they form, and at which depth of the network."""

from __future__ import annotations

from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from polysem.report.page import (
    GREY,
    INNER,
    LIGHT,
    MARGIN,
    WIDTH,
    figure_of,
    number,
    page,
    panel,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.report.unit import described
from polysem.store.run import Run

__all__ = ["cluster_map"]

#: Groups that have a colour of their own and a line in the list.
_NAMED = 20

_GAP, _TOP = 0.3, 1.05


@styled
def cluster_map(run: Run, of: Literal["units", "facets"] = "units") -> Figure:
    """Draw the map of a run's units or facets twice, by group and by site; list the groups.

    Returns
    -------
    Figure
        Ten inches wide.

    Raises
    ------
    SpecError
        If the run has no such clusters yet.
    """
    start, what = ("", "faces") if of == "units" else ("facet_", "facets")
    table, summary = run.table(f"{start}clusters"), run.table(f"{start}cluster_summary")
    quality = run.table(f"{start}cluster_quality").iloc[0]
    side = (INNER - _GAP) / 2
    rows = -(-min(len(summary), _NAMED) // 2)
    foot = _TOP + side + 0.42 + 0.15 * max(1, rows)
    sheet = page(WIDTH, foot + 0.36)
    words = f"{quality['clusters']:,} groups of {quality[what]:,} {what} of units"
    write_title(sheet, words, described(run))
    write(sheet, MARGIN, _TOP - 0.1, "By group", size=8, weight="bold")
    write(sheet, MARGIN + side + _GAP, _TOP - 0.1, "By site", size=8, weight="bold")
    _draw_groups(_map_panel(sheet, MARGIN, side), table)
    _draw_sites(sheet, _map_panel(sheet, MARGIN + side + _GAP, side), table, run.sites)
    _list_groups(sheet, _TOP + side + 0.3, summary, what)
    basis = {
        "centroid": "mean embedding weighted by activation, mean of all images taken out",
        "class": "profile over classes",
        "exemplars": "mean embedding of exemplars, what all have in common taken out",
    }
    notes = [
        f"Compared by {basis.get(quality['feature'], quality['feature'])}. Map: UMAP, cosine; "
        "distances between far groups mean little. Groups: HDBSCAN.",
        f"{quality['grouped_share']:.0%} of {what} are in a group. Stability "
        f"{number(quality['stability'])} (adjusted Rand, bootstrap); silhouette "
        f"{number(quality['silhouette'])}, without groups {number(quality['null_silhouette'])} "
        f"(p = {number(quality['p'], 2)}).",
    ]
    write_notes(sheet, foot + 0.1, notes)
    return figure_of(sheet)


def _map_panel(sheet: Axes, left: float, side: float) -> Axes:
    axes = panel(sheet, left, _TOP, side, side)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=LIGHT)
    return axes


def _colours() -> np.ndarray:
    """Return twenty colours, the strong ones first."""
    pairs = np.array(matplotlib.colormaps["tab20"].colors)  # type: ignore[attr-defined]
    return np.concatenate([pairs[::2], pairs[1::2]])


def _draw_groups(axes: Axes, table: pd.DataFrame) -> None:
    x, y = table["map_x"].to_numpy(), table["map_y"].to_numpy()
    group = table["cluster"].to_numpy()
    named = (group >= 0) & (group < _NAMED)
    size = _dot(len(table))
    axes.scatter(x[~named], y[~named], s=size, color=LIGHT, linewidths=0, rasterized=True)
    axes.scatter(
        x[named], y[named], s=size, c=_colours()[group[named]], linewidths=0, rasterized=True
    )
    for each in np.unique(group[named]):
        mine = group == each
        axes.text(
            float(np.median(x[mine])), float(np.median(y[mine])), str(each), size=7,
            weight="bold", ha="center", va="center",
            bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.7},
        )  # fmt: skip


def _draw_sites(sheet: Axes, axes: Axes, table: pd.DataFrame, sites: list[str]) -> None:
    here = [site for site in sites if site in set(table["site"])]
    depth = table["site"].map({site: i for i, site in enumerate(here)}).to_numpy()
    norm, colours = Normalize(0, max(1, len(here) - 1)), matplotlib.colormaps["viridis"]
    order = np.random.default_rng(0).permutation(len(table))  # no site lies on top of all others
    axes.scatter(
        table["map_x"].to_numpy()[order], table["map_y"].to_numpy()[order], s=_dot(len(table)),
        c=colours(norm(depth[order])), linewidths=0, rasterized=True,
    )  # fmt: skip
    if len(here) < 2:
        return
    right, baseline, width = WIDTH - MARGIN, _TOP - 0.1, 1.3
    last = write(sheet, right, baseline, "last", size=6.5, colour=GREY, align="right")
    left = right - last - 0.06 - width
    bar = panel(sheet, left, baseline - 0.06, width, 0.06)
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=colours)
    bar.set_axis_off()
    write(sheet, left - 0.06, baseline, "first site", size=6.5, colour=GREY, align="right")


def _list_groups(sheet: Axes, top: float, summary: pd.DataFrame, what: str) -> None:
    """Write one line for each of the largest groups, in two columns."""
    column = (INNER - _GAP) / 2
    if summary.empty:
        write(sheet, MARGIN, top, "no groups were found", size=7, colour=GREY)
    shown = summary.head(_NAMED)
    half = -(-len(shown) // 2)
    for i, row in enumerate(shown.to_dict("records")):
        left = MARGIN + (i // half) * (column + _GAP)
        y = top + 0.15 * (i % half)
        sheet.scatter([left + 0.04], [y - 0.03], s=16, color=[_colours()[i]], linewidths=0)
        write(sheet, left + 0.14, y, str(row["cluster"]), size=7, weight="bold")
        many = "s" if row["sites"] > 1 else ""
        words = f"{row[what]:,} {what}, {row['sites']} site{many}, most at {row['main_site']}"
        if isinstance(row["top_class"], str):
            words += f" · {row['top_class']}"
        write(sheet, left + 0.34, y, words, width=column - 0.34, size=7, colour=GREY)


def _dot(n: int) -> float:
    return float(np.clip(9000 / max(1, n), 0.6, 18))
