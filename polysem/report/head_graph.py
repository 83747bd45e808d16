"""The strongest fights and redundancies between heads, as a graph over the network."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch

from polysem.report.head_maps import head_facts
from polysem.report.page import (
    GREY,
    INNER,
    LIGHT,
    MARGIN,
    TAIL_COLOURS,
    WIDTH,
    figure_of,
    page,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.store.run import Run

__all__ = ["interaction_graph", "strongest_pairs"]

_KINDS = {"fights": ("lower", -1), "redundancies": ("upper", 1)}


def strongest_pairs(table: pd.DataFrame, sign: int, most: int) -> pd.DataFrame:
    """Return the pairs of a table of pairs with the strongest interaction of a sign.

    Only such whose interval excludes 0.
    """
    sure = table["interaction_low"] > 0 if sign > 0 else table["interaction_high"] < 0
    order = (sign * table["interaction"][sure]).sort_values(ascending=False).index
    return table.loc[order[:most]]


@styled
def interaction_graph(run: Run, *, most: int = 15) -> Figure:
    """Draw heads as discs, layer after layer, joined where they fight or cover for each other.

    Parameters
    ----------
    run : Run
    most : int, default 15
        Pairs of each kind.
    """
    heads, pairs = run.table("heads"), run.table("head_pairs")
    layers = list(dict.fromkeys(heads["layer"]))
    n_heads = int(heads["head"].max()) + 1
    gap = min(0.62, 5.0 / n_heads)
    top, tall = 1.25, gap * n_heads
    height = top + tall + 1.05
    sheet = page(WIDTH, height)
    write_title(sheet, "The strongest fights and redundancies between heads", head_facts(run))
    across = (INNER - 0.6) / max(1, len(layers) - 1)
    place = {
        (layer, head): (MARGIN + 0.3 + x * across, top + (head + 0.5) * gap)
        for x, layer in enumerate(layers)
        for head in range(n_heads)
    }
    for layer in layers:
        x = place[layer, 0][0]
        write(sheet, x, top - 0.12, f"layer {layer}" if len(layers) <= 14 else str(layer), size=7,
              colour=GREY, align="center")  # fmt: skip
    largest = float(pairs["interaction"].abs().max()) or 1.0
    counts = {}
    for kind, (tail, sign) in _KINDS.items():
        chosen = strongest_pairs(pairs, sign, most)
        counts[kind] = len(chosen)
        for row in chosen.to_dict("records"):
            start, end = place[row["layer"], row["head"]], place[row["layer_2"], row["head_2"]]
            _join(sheet, start, end, abs(row["interaction"]) / largest, TAIL_COLOURS[tail])
    biggest = float(heads["importance_zero"].abs().max()) or 1.0
    for row in heads.to_dict("records"):
        x, y = place[row["layer"], row["head"]]
        gain = row["importance_zero"]
        radius = gap * (0.12 + 0.22 * (abs(gain) / biggest) ** 0.5)
        sheet.add_patch(
            Circle(
                (x, y), radius, facecolor=LIGHT if gain >= 0 else "white", edgecolor=GREY,
                linewidth=0.8, zorder=3,
            )
        )  # fmt: skip
        sheet.text(x, y, str(row["head"]), size=5.5, ha="center", va="center", zorder=4)
    notes = [
        f"Blue: {counts['fights']} strongest fights (or one repairs the other). Vermilion: "
        f"{counts['redundancies']} strongest redundancies. Width: size of the interaction; only "
        "pairs whose 95 % interval excludes 0.",
        "Discs are heads, their area how much the cost changes without the head; white: the "
        "network does better without it.",
    ]
    write_notes(sheet, height - 0.36, notes)
    return figure_of(sheet)


def _join(
    sheet: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    strength: float,
    colour: str,
) -> None:
    bend = 0.35 if start[0] == end[0] else 0.12  # around the heads between, within a layer
    sheet.add_patch(
        FancyArrowPatch(
            start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-", color=colour,
            linewidth=0.5 + 3.5 * strength, alpha=0.75, zorder=2,
        )
    )  # fmt: skip
