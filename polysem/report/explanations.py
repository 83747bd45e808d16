"""Pictures of how methods of explanation compare: on one model, and as it forgets.

From tables and arrays alone, as `explain.localise` and `explain.sanity` make them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polysem.report.page import (
    GREY,
    INK,
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

__all__ = ["gallery_figure", "localisation_figure", "sanity_figure"]

#: Hues that stay apart side by side; the first, for B-cos explanations, is the strongest.
_COLOURS = (
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#8c510a",
    "#01665e", "#c51b7d", "#4d9221", "#b2182b", "#2166ac", "#bdb200", "#5e4fa2", "#f46d43",
)  # fmt: skip

_METRIC_TITLES = {
    "mask_energy": "Inside the object's outline",
    "deletion": "Deletion (lower is better)",
    "insertion": "Insertion",
}

_SIMILARITY_TITLES = {
    "spearman": "Rank correlation",
    "spearman_abs": "Rank correlation, absolute values",
    "ssim": "Structural similarity",
    "hog": "Histograms of gradients",
}

_ORDER_TITLES = {
    "cascading": "All layers from the logits down to this one drawn anew",
    "independent": "This layer alone drawn anew",
}


@styled
def localisation_figure(table: pd.DataFrame, *, title: str, subtitle: str) -> Figure:
    """Draw a point and interval for each method (row) and metric (panel), with chance as a line.

    Parameters
    ----------
    table : DataFrame
        Columns method, control, metric, better, value, low, high, chance.
    title, subtitle : str
    """
    metrics = list(table["metric"].unique())
    methods = _best_first(table)
    row, label, gap = 0.2, 1.6, 0.3
    height = row * len(methods)
    sheet = page(WIDTH, 0.72 + 0.3 + height + 0.75)
    write_title(sheet, title, subtitle)
    top, width = 1.02, (INNER - label - gap * (len(metrics) - 1)) / len(metrics)
    controls = set(table.loc[table["control"], "method"])
    for i, method in enumerate(methods):
        colour = GREY if method in controls else INK
        write(sheet, MARGIN, top + row * (i + 0.65), method, width=label - 0.1, colour=colour)
    for k, metric in enumerate(metrics):
        left = MARGIN + label + k * (width + gap)
        write(sheet, left, top - 0.1, _metric_title(metric), width=width, weight="bold")
        axes = panel(sheet, left, top, width, height)
        _draw_forest(axes, table[table["metric"] == metric].set_index("method"), methods)
    notes = [
        "Mean over pictures or grids and its 95 % bootstrap interval; dashed: a map that is the "
        "same everywhere. Grey: controls, which explain nothing.",
        "Grid: share of positive contribution that lies in the class's own cell. Deletion and "
        "insertion: area under the model's confidence as pixels go or come, best first.",
    ]
    write_notes(sheet, top + height + 0.45, notes)
    return figure_of(sheet)


def _draw_forest(axes: Axes, rows: pd.DataFrame, methods: Sequence[str]) -> None:
    axes.set(ylim=(len(methods) - 0.5, -0.5), yticks=[], xlim=(0, 1))
    axes.spines["left"].set_visible(False)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    for y in range(len(methods)):
        axes.axhline(y, color=LIGHT, linewidth=0.5, zorder=0)
    chance = rows["chance"].to_numpy()[0]
    if not np.isnan(chance):
        axes.axvline(chance, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    places = {method: y for y, method in enumerate(methods)}
    columns = [rows.reset_index()[name] for name in ("method", "control", "value", "low", "high")]
    row: tuple[Any, ...]
    for row in zip(*columns, strict=True):
        method, control, value, low, high = row
        y, colour = places[method], GREY if control else _COLOURS[0]
        if not np.isnan(low):
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5, zorder=2)
        axes.plot(value, y, "o", color=colour, markersize=3.5, zorder=3)
        axes.annotate(
            number(value, 2), (value, y), xytext=(6 if value < 0.8 else -6, 2.5),
            textcoords="offset points", ha="left" if value < 0.8 else "right", size=5.5,
            color=colour,
        )  # fmt: skip


def _metric_title(metric: str) -> str:
    if metric.startswith("grid_"):
        return f"Grid {metric.removeprefix('grid_').replace('x', ' × ')}, own cell"
    return _METRIC_TITLES.get(metric, metric)


def _best_first(table: pd.DataFrame) -> list[str]:
    """Return methods by their mean rank over metrics, controls last."""
    sign = np.where(table["better"] == "lower", 1, -1)
    ranks = (table["value"] * sign).groupby(table["metric"]).rank()
    means = ranks.groupby(table["method"], sort=False).mean()
    control = table.groupby("method", sort=False)["control"].first()
    order = np.lexsort((means.to_numpy(), control.loc[means.index].to_numpy()))
    return [str(means.index[i]) for i in order]


@styled
def sanity_figure(table: pd.DataFrame, *, title: str, subtitle: str) -> Figure:
    """Draw similarity to the trained model's maps against depth, a line for each method.

    Parameters
    ----------
    table : DataFrame
        Columns method, control, order, depth, layer, similarity, value.
    title, subtitle : str
        Where models trained on permuted labels are in the table (order ``data``), each method has
        a diamond at the right.
    """
    orders = [order for order in _ORDER_TITLES if order in set(table["order"])]
    similarities = [name for name in _SIMILARITY_TITLES if name in set(table["similarity"])]
    methods = {str(m): bool(c) for m, c in zip(table["method"], table["control"], strict=True)}
    looks = _looks(methods)
    data = table[table["order"] == "data"]
    layers = table[table["order"] == (orders[0] if orders else "data")]
    names = list(layers.drop_duplicates("depth").sort_values("depth")["layer"])
    gap, height, foot = 0.35, 1.9, 0.1 + 0.045 * max(len(name) for name in names)
    keys_per_row = 6
    legend = 0.16 * -(-len(methods) // keys_per_row)
    sheet = page(WIDTH, 0.72 + len(orders) * (height + 0.35) + foot + legend + 0.45)
    write_title(sheet, title, subtitle)
    width = (INNER - 0.2 - gap * (len(similarities) - 1)) / max(len(similarities), 1)
    low = min(-0.25, float(table["value"].min()) - 0.05)
    for r, order in enumerate(orders):
        top = 0.72 + r * (height + 0.35)
        write(sheet, MARGIN, top + 0.08, _ORDER_TITLES[order], weight="bold", width=INNER)
        for c, similarity in enumerate(similarities):
            axes = panel(sheet, MARGIN + 0.2 + c * (width + gap), top + 0.32, width, height - 0.15)
            chosen = table[(table["order"] == order) & (table["similarity"] == similarity)]
            beside = data[data["similarity"] == similarity]
            _draw_lines(axes, chosen, beside, looks, names, low, labelled=r == len(orders) - 1)
            axes.set_title(_SIMILARITY_TITLES[similarity], size=7, loc="left", color=GREY, pad=3)
    bottom = 0.72 + len(orders) * (height + 0.35) + foot
    for i, (method, look) in enumerate(looks.items()):
        x = MARGIN + (i % keys_per_row) * INNER / keys_per_row
        y = bottom + 0.1 + 0.16 * (i // keys_per_row)
        sheet.plot([x, x + 0.22], [y - 0.03, y - 0.03], **look)
        write(sheet, x + 0.28, y, method, width=INNER / keys_per_row - 0.3)
    notes = ["1: the map is that of the trained model; 0: unrelated. Mean over images."]
    if len(data):
        notes[0] += " Diamonds: a model trained on permuted labels."
    write_notes(sheet, bottom + legend + 0.2, notes)
    return figure_of(sheet)


def _looks(methods: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    looks: dict[str, dict[str, Any]] = {}
    hues = iter(_COLOURS[1:] * (1 + len(methods) // (len(_COLOURS) - 1)))
    dashes = iter([(0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2))] * len(methods))
    for method, control in methods.items():
        if control:
            looks[method] = {"color": GREY, "linestyle": next(dashes), "linewidth": 1.0}
        elif method == "bcos":
            looks[method] = {"color": _COLOURS[0], "linewidth": 1.8}
        else:
            looks[method] = {"color": next(hues), "linewidth": 1.1}
    return looks


def _draw_lines(
    axes: Axes,
    rows: pd.DataFrame,
    data: pd.DataFrame,
    looks: Mapping[str, dict[str, Any]],
    names: Sequence[str],
    low: float,
    *,
    labelled: bool,
) -> None:
    extra = bool(len(data))
    axes.set(xlim=(-0.3, len(names) - 0.7 + extra), ylim=(low, 1.05), yticks=[0, 0.5, 1])
    axes.axhline(0, color=LIGHT, linewidth=0.6, zorder=0)
    for method, look in looks.items():
        line = rows[rows["method"] == method].sort_values("depth")
        axes.plot(line["depth"], line["value"], **look)
        beside = data.loc[data["method"] == method, "value"]
        axes.plot([len(names)] * len(beside), beside, "D", color=look["color"], markersize=3)
    axes.set_xticks(range(len(names) + extra))
    shown = [*names, *(["labels permuted"] if extra else [])]
    axes.set_xticklabels(shown if labelled else [""] * len(shown), rotation=90, size=6)


@styled
def gallery_figure(
    pictures: npt.NDArray[np.uint8],
    maps: Mapping[str, npt.NDArray[np.floating]],
    titles: Sequence[str],
    *,
    masks: npt.NDArray[np.bool_] | None = None,
    colours: npt.NDArray[np.floating] | None = None,
    title: str,
    subtitle: str,
) -> Figure:
    """Draw pictures (rows) with the map of each method (columns).

    Parameters
    ----------
    pictures : uint8 array [image, y, x, 3]
    maps : mapping of str to array [image, y, x]
        Signed contributions by method: red for, blue against; each map has its own scale, which
        ends at the 99.5 % quantile of its absolute values.
    titles : sequence of str
        What each picture is explained for.
    masks : bool array [image, y, x], optional
        Drawn as an outline on pictures and maps.
    colours : array [image, y, x, 4], optional
        Explanations in colour, RGBA in [0, 1], drawn on white before the maps.
    title, subtitle : str
    """
    columns = ["picture", *([] if colours is None else ["in colour"]), *maps]
    label, gap = 0.6, 0.05
    cell = min(0.95, max(0.62, (INNER - label) / len(columns) - gap))
    slant = 0.04 * len(columns[-1])  # the last name leans over the edge
    width = max(WIDTH, 2 * MARGIN + label + len(columns) * (cell + gap) + slant)
    aspect = pictures.shape[1] / pictures.shape[2]
    heads = 0.1 + 0.05 * max(len(name) for name in columns)
    sheet = page(width, 0.72 + heads + len(pictures) * (cell * aspect + gap) + 0.4)
    write_title(sheet, title, subtitle)
    top = 0.72 + heads
    for c, name in enumerate(columns):
        x = MARGIN + label + c * (cell + gap) + cell / 2
        sheet.text(x, top - 0.06, name, rotation=45, size=6.5, ha="left", va="bottom",
                   rotation_mode="anchor")  # fmt: skip
    for r, picture in enumerate(pictures):
        y = top + r * (cell * aspect + gap)
        write(sheet, MARGIN, y + cell * aspect / 2, titles[r], width=label - 0.08)
        shown: list[tuple[npt.NDArray[Any], bool]]
        shown = [(picture, False), *([] if colours is None else [(colours[r], False)])]
        shown += [(value[r], True) for value in maps.values()]
        for c, (values, signed) in enumerate(shown):
            axes = panel(sheet, MARGIN + label + c * (cell + gap), y, cell, cell * aspect)
            _draw_map(axes, values, None if masks is None else masks[r], signed=signed)
    notes = ["Red speaks for what is explained, blue against it; each map has its own scale."]
    if masks is not None:
        notes[0] += " Outline: the object that gives the class."
    write_notes(sheet, top + len(pictures) * (cell * aspect + gap) + 0.18, notes)
    return figure_of(sheet)


def _draw_map(
    axes: Axes,
    values: npt.NDArray[np.floating],
    mask: npt.NDArray[np.bool_] | None,
    *,
    signed: bool,
) -> None:
    if signed:
        end = float(np.quantile(np.abs(values), 0.995)) or float(np.abs(values).max()) or 1.0
        axes.imshow(values, cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest")
    else:
        axes.imshow(values, interpolation="nearest")
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask.astype(float), levels=[0.5], colors=INK, linewidths=0.5)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=LIGHT)
