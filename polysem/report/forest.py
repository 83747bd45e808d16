"""Forest plots: what differs between arms of networks, by how much, and how surely."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
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

__all__ = ["forest"]

#: Okabe and Ito's palette, for pairs of arms.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

_NAMES, _GAP, _PANELS = 1.9, 0.18, 4


@styled
def forest(compared: pd.DataFrame) -> Figure:
    """Draw effects with their intervals, a line for each measure.

    Parameters
    ----------
    compared : DataFrame
        ``comparison.parquet``: measures of units as Cliff's delta, a panel for each kind of site;
        measures of whole networks as differences, each on its own scale.

    Returns
    -------
    Figure
        Ten inches wide; filled where the interval excludes 0 and q is at most 5 %.
    """
    pairs = list(compared[["arm", "other"]].drop_duplicates().itertuples(index=False, name=None))
    line = 0.155 + 0.05 * (len(pairs) - 1)  # inches a row
    of_units = compared[compared["delta"].notna()]
    of_networks = compared[(compared["site"] == "") & compared["difference"].notna()]
    kinds = list(of_units["site"].drop_duplicates())[:_PANELS]
    rows = _rows(of_units[of_units["site"].isin(kinds)])
    network_rows = _rows(of_networks)
    top = 1.12
    tall = len(rows) * line
    second = top + tall + (0.75 if rows else 0)
    foot = second + (len(network_rows) * line + 0.2 if network_rows else -0.2)
    sheet = page(WIDTH, foot + 0.62)
    names = " · ".join(f"{arm} against {other}" for arm, other in pairs)
    write_title(sheet, f"What differs: {names}", _sizes(compared))
    _legend(sheet, pairs)
    if rows:
        _names(sheet, rows, top, line)
        width = (INNER - _NAMES - (len(kinds) - 1) * _GAP) / len(kinds)
        for i, kind in enumerate(kinds):
            left = MARGIN + _NAMES + i * (width + _GAP)
            write(sheet, left, top - 0.09, kind, width=width, size=8, weight="bold")
            axes = panel(sheet, left, top, width, tall)
            _draw_units(axes, of_units[of_units["site"] == kind], rows, pairs)
    if network_rows:
        write(sheet, MARGIN, second - 0.09, "Whole networks: difference", size=8, weight="bold")
        _draw_networks(sheet, of_networks, network_rows, pairs, (second, line))
    write_notes(sheet, foot + 0.25, _notes(compared, of_units))
    return figure_of(sheet)


def _rows(some: pd.DataFrame) -> list[tuple[str, str]]:
    return list(some[["table", "measure"]].drop_duplicates().itertuples(index=False, name=None))


def _sizes(compared: pd.DataFrame) -> str:
    seeds = compared.drop_duplicates(["arm", "other"])
    parts = [
        f"{row['arm']}: {row['runs']}, {row['other']}: {row['other_runs']}"
        for row in seeds.to_dict("records")
    ]
    return "networks (seeds) of " + "; ".join(parts)


def _legend(sheet: Axes, pairs: list[tuple[str, str]]) -> None:
    left = MARGIN
    for k, (arm, other) in enumerate(pairs):
        sheet.scatter([left + 0.05], [0.73], s=18, color=_COLOURS[k % 6], linewidths=0)
        left += 0.35 + write(sheet, left + 0.16, 0.76, f"right: {arm} higher than {other}", size=8)


def _names(sheet: Axes, rows: list[tuple[str, str]], top: float, line: float) -> None:
    """Write the measures, and the table above the first of each."""
    last = None
    for i, (table, measure) in enumerate(rows):
        y = top + (i + 0.5) * line + 0.03
        if table != last:
            sheet.plot([MARGIN, WIDTH - MARGIN], [top + i * line] * 2, color=LIGHT, lw=0.5)
            write(sheet, MARGIN, y, table, width=0.72, size=6, colour=GREY)
        write(sheet, MARGIN + 0.78, y, measure.replace("_", " "), width=_NAMES - 0.85, size=6.5)
        last = table


def _draw_units(
    axes: Axes, some: pd.DataFrame, rows: list[tuple[str, str]], pairs: list[tuple[str, str]]
) -> None:
    place = {row: i for i, row in enumerate(rows)}
    for row in some.to_dict("records"):
        k = pairs.index((row["arm"], row["other"]))
        y = place[row["table"], row["measure"]] + 0.5 + _offset(k, len(pairs))
        _point(axes, row, y, ("delta", "delta_low", "delta_high"), 1.0, k)
    axes.axvline(0, color=GREY, lw=0.6)
    axes.set(xlim=(-1.04, 1.04), ylim=(len(rows), 0), xlabel="Cliff's delta")
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−½", "0", "½", "1"])
    axes.grid(axis="x", color=LIGHT, lw=0.4)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _draw_networks(
    sheet: Axes,
    some: pd.DataFrame,
    rows: list[tuple[str, str]],
    pairs: list[tuple[str, str]],
    at: tuple[float, float],
) -> None:
    """Draw differences about a common zero, the largest of a row's ends at the edge."""
    top, line = at
    _names(sheet, rows, top, line)
    width = 3.6
    axes = panel(sheet, MARGIN + _NAMES, top, width, len(rows) * line)
    for i, (table, measure) in enumerate(rows):
        its = some[(some["table"] == table) & (some["measure"] == measure)]
        ends = its[["difference", "difference_low", "difference_high"]].to_numpy(dtype=float)
        size = float(np.nanmax(np.abs(ends))) or 1.0
        texts = []
        for row in its.to_dict("records"):
            k = pairs.index((row["arm"], row["other"]))
            columns = ("difference", "difference_low", "difference_high")
            _point(axes, row, i + 0.5 + _offset(k, len(pairs)), columns, size, k)
            text = number(row["difference"])
            if np.isfinite(row["difference_low"]):
                text += f" ({number(row['difference_low'])} to {number(row['difference_high'])})"
            if len(pairs) == 1:
                text = f"{number(row['value'])} − {number(row['other_value'])} = {text}"
            texts.append(text)
        left, y = MARGIN + _NAMES + width + 0.15, top + (i + 0.5) * line + 0.03
        write(sheet, left, y, "; ".join(texts), width=WIDTH - MARGIN - left, size=6.5)
    axes.axvline(0, color=GREY, lw=0.6)
    axes.set(xlim=(-1.06, 1.06), ylim=(len(rows), 0))
    axes.patch.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _offset(k: int, n: int) -> float:
    return (k - (n - 1) / 2) * 0.5 / n if n > 1 else 0.0


def _point(
    axes: Axes,
    row: Mapping[Hashable, Any],
    y: float,
    columns: tuple[str, str, str],
    size: float,
    k: int,
) -> None:
    value, low, high = (float(row[c]) / size for c in columns)
    colour = _COLOURS[k % len(_COLOURS)]
    if np.isfinite(low):
        axes.plot([low, high], [y, y], color=colour, lw=1.1)
    # q is missing where there is no test, the interval where all of an arm are above the other
    excludes = low > 0 or high < 0
    sure = row["q"] <= 0.05 if np.isnan(low) else excludes and not row["q"] > 0.05
    face = colour if sure else "white"
    axes.plot([value], [y], "o", ms=3.2, mfc=face, mec=colour, mew=0.8, clip_on=False)


def _notes(compared: pd.DataFrame, of_units: pd.DataFrame) -> list[str]:
    notes = [
        "Cliff's delta: chance that a unit of the first arm is higher than one of the other at the "
        "same layer, minus the reverse. Whole networks: each row on its own scale.",
        "Bars: 95 % intervals, on these images. Filled: the interval excludes 0, and the false "
        "discovery rate (Benjamini–Hochberg over the measures of two arms) is at most 5 % where "
        "there is a test.",
    ]
    if (compared["about"] == "these networks").any():
        notes.append(
            "An arm has a single seed: what is shown is a difference between these networks, and "
            "says nothing of other seeds."
        )
    left_out = of_units["site"].nunique() - _PANELS
    if left_out > 0:
        notes.append(f"{left_out} more kinds of sites are in the table.")
    return notes
