"""How networks fare as more and more of their heads are dropped at random."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from polysem.report.page import (
    INK,
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
from polysem.store.run import Run

__all__ = ["drop_curves"]

#: Okabe and Ito's palette, told apart with any colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)


@styled
def drop_curves(runs: Mapping[str, Run]) -> Figure:
    """Draw accuracy and loss against the share of heads dropped, a line for each named run."""
    sheet = page(WIDTH, 4.5)
    first = next(iter(runs.values()))
    draws, images = first.gates.sizes["draw"], first.gates.sizes["image"]
    title = "Heads dropped at random"
    data = first.manifest["data"]["name"]
    write_title(sheet, title, f"{images:,} images of {data}, mean over {draws} random orders")
    width = (INNER - 0.6) / 2
    for i, (name, heading) in enumerate({"accuracy": "Accuracy", "loss": "Loss, nats"}.items()):
        left = MARGIN + 0.35 + i * (width + 0.3)
        write(sheet, left - 0.3, 0.98, heading, size=8, weight="bold")
        axes = panel(sheet, left, 1.1, width - 0.15, 2.6)
        for k, (label, run) in enumerate(runs.items()):
            table, colour = run.table("head_drop"), _COLOURS[k % len(_COLOURS)]
            share = table["share"]
            axes.plot(share, table[name], "o-", color=colour, markersize=3, linewidth=1.2,
                      label=label)  # fmt: skip
            axes.fill_between(share, table[f"{name}_low"], table[f"{name}_high"], color=colour,
                              alpha=0.18, linewidth=0)  # fmt: skip
        axes.grid(axis="y", color=LIGHT, linewidth=0.4)
        axes.set_xlabel("share of heads dropped")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        if name == "accuracy":
            axes.set_ylim(0, 1.03)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
            axes.legend(loc="lower left", fontsize=7)
        else:
            axes.set_ylim(bottom=0)
    write_notes(sheet, 4.36, ["Bands: 95 % bootstrap interval over images."])
    return figure_of(sheet)
