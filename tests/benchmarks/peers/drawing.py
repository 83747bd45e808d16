"""The comparison as one picture: a panel for each task, a bar for each row."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

__all__ = ["draw_table"]

_TITLES = {
    "record": "record neurons and heads: CPU time over the bare forward pass",
    "exemplars": "search for exemplars: CPU seconds",
    "label": "label neurons by soft-WPMI: CPU seconds",
    "label_by_mean": "label neurons by mean embedding: CPU seconds",
    "monosemanticity": "monosemanticity score: CPU seconds",
    "clarity": "clarity score: CPU seconds",
}
_OURS, _THEIRS = "#2b6cb0", "#b8bfc9"


def draw_table(table: pd.DataFrame, file: Path) -> None:
    """Draw all rows that were measured; shorter bars are better."""
    tasks = [task for task in _TITLES if task in set(table["task"])]
    counts = [int((table["task"] == task).sum()) for task in tasks]
    figure = Figure(figsize=(8.5, 0.36 * sum(counts) + 0.75 * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 1, height_ratios=[n + 0.6 for n in counts], squeeze=False)
    for task, ax in zip(tasks, axes[:, 0], strict=True):
        rows = table[table["task"] == task].iloc[::-1]
        value = rows["cpu_over_bare" if task == "record" else "cpu_seconds"]
        names = [f"{r.peer} ({r.how})" for r in rows.itertuples()]
        colours = [_OURS if peer == "polysem" else _THEIRS for peer in rows["peer"]]
        ax.barh(names, value.fillna(0), color=colours, height=0.7)
        for place, (number, problem) in enumerate(zip(value, rows["problem"], strict=True)):
            text = f" {number:.3g}" if not problem else f" {problem[:60]}"
            ax.text(0 if problem else number, place, text, va="center", fontsize=8)
        if task == "record":
            ax.axvline(1, color="black", linewidth=0.8, linestyle=":")
        ax.set_title(_TITLES[task], fontsize=9, loc="left")
        ax.set_xlim(0, 1.12 * max(float(value.max()), 1e-9))
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=140)
