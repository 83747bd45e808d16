"""How the cost of a probe grows, from the table of `polysem bench scaling`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from polysem.report.page import (
    INNER,
    LIGHT,
    MARGIN,
    WIDTH,
    figure_of,
    page,
    panel,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip

__all__ = ["scaling_figure", "slopes"]

#: Panels: what grows, and what is drawn against it.
_PANELS = {
    "images": {"cpu_s": "recording, CPU s", "state_mb": "memory, MiB"},
    "units": {"cpu_s": "recording, CPU s", "state_mb": "memory, MiB", "finish_s": "finish, CPU s"},
    "top_k": {"cpu_s": "recording, CPU s", "state_mb": "memory, MiB", "finish_s": "finish, CPU s"},
    "processes": {"cpu_s": "all processes, CPU s", "peak_mb": "largest process, MiB"},
}
_COLOURS = {"cpu_s": "#0072b2", "state_mb": "#d55e00", "peak_mb": "#d55e00", "finish_s": "#009e73"}


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Return the slope of each cost over what grows, both logarithmic: 1 is in proportion.

    Returns
    -------
    DataFrame
        Columns axis, cost, slope.
    """
    rows = []
    for axis, costs in _PANELS.items():
        lines = table[table["axis"] == axis]
        for cost in costs:
            x, y = np.log(lines[axis].to_numpy(float)), np.log(lines[cost].to_numpy(float))
            if len(x) > 1:
                rows.append({"axis": axis, "cost": cost, "slope": float(np.polyfit(x, y, 1)[0])})
    return pd.DataFrame(rows, columns=["axis", "cost", "slope"])


@styled
def scaling_figure(table: pd.DataFrame) -> Figure:
    """Draw each cost against what grows, with the fitted slope."""
    sheet = page(WIDTH, 3.45)
    write_title(sheet, "What a probe costs", "logarithmic axes; lines are fits, with their slope")
    fitted = slopes(table).set_index(["axis", "cost"])["slope"]
    width = (INNER - 3 * 0.3) / 4
    for i, (axis, costs) in enumerate(_PANELS.items()):
        lines = table[table["axis"] == axis]
        if lines.empty:
            continue
        left = MARGIN + i * (width + 0.3)
        write(sheet, left, 0.78, {"top_k": "exemplars per unit"}.get(axis, axis), size=8,
              weight="bold")  # fmt: skip
        axes = panel(sheet, left + 0.25, 0.9, width - 0.25, 1.95)
        for cost, label in costs.items():
            _draw(axes, lines[axis].to_numpy(float), lines[cost].to_numpy(float), label,
                  _COLOURS[cost], float(fitted.get((axis, cost), np.nan)))  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(top=axes.get_ylim()[1] * 12)  # room for the legend
        axes.xaxis.set_major_locator(FixedLocator(lines[axis].tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="y", labelsize=6)
        axes.tick_params(axis="x", labelsize=6, rotation=30 if axis in ("images", "units") else 0)
        axes.grid(color=LIGHT, linewidth=0.4)
        axes.legend(loc="upper left", fontsize=6, frameon=False)
    note = "The first three: one site of signed units and 49 tokens. Processes: a whole probe."
    write_notes(sheet, 3.3, [note])
    return figure_of(sheet)


def _draw(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, colour: str, slope: float) -> None:
    axes.plot(x, y, "o", color=colour, markersize=3, label=f"{label}: slope {slope:.2f}")
    at = np.exp(np.log(y).mean() + slope * (np.log(x) - np.log(x).mean()))
    axes.plot(x, at, color=colour, linewidth=1)
