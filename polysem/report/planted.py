"""How well scores of polysemanticity do on planted units, drawn: one panel a level."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

__all__ = ["scores_figure"]

_STYLES = {
    "nothing": ("0.6", ":"),
    "embeddings": ("tab:blue", "-"),
    "labels": ("tab:green", "--"),
    "concepts": ("tab:purple", "-."),
}


def scores_figure(table: pd.DataFrame) -> Figure:
    """Draw AUROC and Spearman correlation of every score against noise.

    Parameters
    ----------
    table : DataFrame
        From the planted benchmark: columns level, needs, score, noise, auroc, spearman, headline.
    """
    levels = list(dict.fromkeys(table["level"]))
    figure = Figure(figsize=(3.2 * len(levels) + 2.6, 6.2), layout="constrained")
    axes = figure.subplots(2, len(levels), sharex=True, sharey="row", squeeze=False)
    colours = _colours(table)
    for column, level in enumerate(levels):
        for row, measure in enumerate(("auroc", "spearman")):
            panel = axes[row, column]
            for name, part in table[table["level"] == level].groupby("score", sort=False):
                first = part.iloc[0]
                panel.plot(
                    range(len(part)), part[measure], colours[str(name)][1], label=name,
                    color=colours[str(name)][0], marker="o", markersize=3.5,
                    linewidth=3 if first["headline"] else 1.2,
                    zorder=3 if first["headline"] else 2,
                )  # fmt: skip
            panel.axhline(0.5 if row == 0 else 0, color="0.8", linewidth=0.8, zorder=1)
            panel.set_xticks(range(part["noise"].nunique()), [f"{n:g}" for n in part["noise"]])
            panel.grid(axis="y", color="0.93")
            panel.spines[["top", "right"]].set_visible(False)
        axes[0, column].set_title(level)
        axes[1, column].set_xlabel("noise / signal (standard deviations)")
    axes[0, 0].set_ylabel("AUROC, one concept against several")
    axes[1, 0].set_ylabel("Spearman correlation with their number")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    needs = table.drop_duplicates("score").set_index("score")["needs"]
    headline = set(table.loc[table["headline"], "score"])
    named = [
        f"{label} ({needs[label]})" + (": headline" if label in headline else "")
        for label in labels
    ]
    figure.legend(handles, named, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _colours(table: pd.DataFrame) -> dict[str, tuple[object, str]]:
    """Return a colour and a line style for each score; the style tells what the score needs."""
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    firsts = table.drop_duplicates("score")
    return {
        score: ("black" if headline else palette(2 * number % 20 + number // 10), _STYLES[needs][1])
        for number, (score, needs, headline) in enumerate(
            zip(firsts["score"], firsts["needs"], firsts["headline"], strict=True)
        )
    }
