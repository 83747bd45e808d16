"""Two networks side by side: medians of scores over depth, with their intervals."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polysem.report.page import (
    GREY,
    INNER,
    LIGHT,
    MARGIN,
    TAIL_COLOURS,
    WIDTH,
    figure_of,
    page,
    panel,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip

__all__ = ["layer_figure"]

#: What is drawn, if it is there, with what a higher value means.
_DRAWN = {
    "ms_above_chance": "Monosemanticity above chance",
    "effective_classes": "Effective number of classes",
    "selectivity": "Class selectivity",
    "kurtosis": "Excess kurtosis",
    "hoyer": "Hoyer sparsity",
    "half_mass_share": "Images that hold half of activation",
}

_COLUMNS, _GAP, _HEIGHT, _BETWEEN = 3, 0.45, 1.7, 0.6


@styled
def layer_figure(compared: pd.DataFrame, names: tuple[str, str]) -> Figure:
    """Draw medians of both runs by site, with 95 % intervals over units.

    Parameters
    ----------
    compared : DataFrame
        Rows of site and measure with value, other_value and their intervals, as in
        ``layers.parquet`` of a comparison.
    names : (str, str)
        What the two runs are called.

    Returns
    -------
    Figure
        Ten inches wide.
    """
    scores = [score for score in _DRAWN if score in set(compared["measure"])]
    rows = -(-max(1, len(scores)) // _COLUMNS)
    foot = 0.95 + rows * (_HEIGHT + _BETWEEN)
    sheet = page(WIDTH, foot + 0.2)
    write_title(sheet, " beside ".join(names), "medians over units, site by site")
    left = MARGIN
    for name, colour in zip(names, TAIL_COLOURS.values(), strict=True):
        sheet.scatter([left + 0.05], [0.72], s=20, color=colour, linewidths=0)
        left += 0.35 + write(sheet, left + 0.16, 0.75, name, size=8)
    width = (INNER - (_COLUMNS - 1) * _GAP) / _COLUMNS
    for i, score in enumerate(scores):
        x = MARGIN + (i % _COLUMNS) * (width + _GAP)
        y = 1.15 + (i // _COLUMNS) * (_HEIGHT + _BETWEEN)
        write(sheet, x, y - 0.1, _DRAWN[score], width=width, size=8, weight="bold")
        _draw(panel(sheet, x + 0.2, y, width - 0.2, _HEIGHT), compared, score)
    note = "Bars: 95 % intervals over units of these two networks; of other seeds they say nothing."
    write_notes(sheet, foot + 0.02, [note])
    return figure_of(sheet)


def _draw(axes: Axes, compared: pd.DataFrame, score: str) -> None:
    some = compared[compared["measure"] == score].reset_index(drop=True)
    for offset, (which, colour) in zip(
        (-0.12, 0.12),
        zip(("value", "other_value"), TAIL_COLOURS.values(), strict=True),
        strict=True,
    ):
        place = some.index.to_numpy() + offset
        axes.vlines(place, some[f"{which}_low"], some[f"{which}_high"], color=colour, lw=1.2)
        axes.plot(place, some[which], "o-", color=colour, ms=3, lw=0.6)
    axes.set_xticks(range(len(some)), labels=[_short(site) for site in some["site"]])
    axes.set_xlim(-0.5, len(some) - 0.5)
    axes.grid(axis="y", color=LIGHT, lw=0.4)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY)


def _short(site: str) -> str:
    """Return what tells a site apart in a row of them: a block by its number."""
    block, _, rest = site.removeprefix("blocks.").partition(".")
    if not site.startswith("blocks."):
        return site.removeprefix("hook_")
    return block if rest.startswith("mlp") else f"{block} {rest.split('.')[0]}"
