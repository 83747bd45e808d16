"""Labels of units over training as an alluvial diagram: who is called what, and who changes."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from polysem.report.page import (
    GREY,
    INNER,
    LIGHT,
    MARGIN,
    WIDTH,
    figure_of,
    page,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.store.evolution import Evolution

__all__ = ["label_flow"]

#: Labels with a colour of their own; the others are drawn together.
_NAMED = 12

_OTHER, _NONE = "others", "no label"

#: Inches: top and height of the diagram, width of a column, words after the last, gap of labels.
_TOP, _HEIGHT, _COLUMN, _WORDS, _GAP = 1.15, 5.2, 0.13, 1.7, 0.035


@styled
def label_flow(evolution: Evolution) -> Figure | None:
    """Draw how faces of units pass from label to label, snapshot by snapshot.

    Returns
    -------
    Figure or None
        Ten inches wide; None where units are called nothing.
    """
    table = evolution.table("trajectories")
    steps = evolution.steps
    labels = table["label"].to_numpy(dtype=object).reshape(-1, len(steps))
    alive = ~table["dead"].to_numpy(dtype=bool).reshape(-1, len(steps)).any(1)
    labels = labels[alive]
    if pd.isna(labels).all():
        return None
    names, codes = _coded(labels)
    sheet = page(WIDTH, _TOP + _HEIGHT + 0.5)
    what = evolution.manifest["labels"]["source"]
    called = "concept that names them" if what == "concepts" else "class that they tell best"
    words = f"{evolution.manifest['model']['name']}, {len(labels):,} faces of units by the {called}"
    write_title(sheet, "Labels over training", words)
    places = np.linspace(MARGIN, MARGIN + INNER - _WORDS - _COLUMN, len(steps))
    tops = [_stacked(codes[:, s], len(names)) for s in range(len(steps))]
    colours = _colours(names)
    scale = (_HEIGHT - _GAP * (len(names) - 1)) / max(1, len(codes))
    for s, (step, x) in enumerate(zip(steps, places, strict=True)):
        head = f"step {step:,}" if s == 0 else f"{step:,}"
        write(sheet, x + _COLUMN / 2 if s else x, _TOP - 0.12, head, size=7.5, colour=GREY,
              align="center" if s else "left")  # fmt: skip
        counts = np.bincount(codes[:, s], minlength=len(names))
        for k, count in enumerate(counts):
            box = Rectangle((x, tops[s][k]), _COLUMN, count * scale, facecolor=colours[k], lw=0)
            sheet.add_patch(box)
        if s + 1 < len(steps):
            _flow(sheet, codes[:, s], codes[:, s + 1], tops[s], tops[s + 1],
                  (x + _COLUMN, places[s + 1]), scale, colours)  # fmt: skip
    _name(sheet, places[-1] + _COLUMN + 0.08, names, codes[:, -1], tops[-1], scale)
    changed = (codes[:, 1:] != codes[:, :-1]).mean(0)
    said = ", ".join(f"{100 * share:.0f} %" for share in changed)
    notes = [f"Faces whose label changes from one snapshot to the next: {said}."]
    write_notes(sheet, _TOP + _HEIGHT + 0.3, notes)
    return figure_of(sheet)


def _coded(labels: npt.NDArray[np.object_]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return names, most frequent in the end first, and the number of each label's [face, step]."""
    last = pd.Series(labels[:, -1]).dropna().value_counts()
    every = pd.Series(labels.ravel()).dropna().value_counts()
    order = [str(name) for name in [*last.index, *every.index.difference(last.index)]]
    names = order[:_NAMED]
    numbers = {name: min(i, _NAMED) for i, name in enumerate(order)}
    rest = [_OTHER] if len(order) > _NAMED else []
    names = [*names, *rest, _NONE]
    flat = [len(names) - 1 if pd.isna(label) else numbers[str(label)] for label in labels.ravel()]
    return names, np.array(flat, dtype=np.int64).reshape(labels.shape)


def _stacked(codes: npt.NDArray[np.int64], n_names: int) -> npt.NDArray[np.float64]:
    """Return where each label's block begins, in inches from the top of the sheet."""
    counts = np.bincount(codes, minlength=n_names)
    scale = (_HEIGHT - _GAP * (n_names - 1)) / max(1, len(codes))
    return np.asarray(_TOP + np.cumsum([0, *(counts[:-1] * scale + _GAP)]))


def _colours(names: list[str]) -> list[str]:
    palette = [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["Paired"].colors]  # type: ignore[attr-defined]
    palette = palette[1::2] + palette[::2]  # the strong ones first
    special = {_OTHER: GREY, _NONE: LIGHT}
    return [special.get(name, palette[i % len(palette)]) for i, name in enumerate(names)]


def _flow(
    sheet: Axes,
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
    tops: npt.NDArray[np.float64],
    next_tops: npt.NDArray[np.float64],
    between: tuple[float, float],
    scale: float,
    colours: list[str],
) -> None:
    """Draw the bands from the blocks of one snapshot to those of the next."""
    n = len(colours)
    counts = np.bincount(before * n + after, minlength=n * n).reshape(n, n) * scale
    x = np.linspace(*between, 40)
    ease = np.linspace(0, 1, 40)
    ease = ease * ease * (3 - 2 * ease)
    start = tops[:, None] + np.cumsum(counts, axis=1) - counts
    end = next_tops[None] + np.cumsum(counts, axis=0) - counts
    for i, j in zip(*np.nonzero(counts), strict=True):
        upper = start[i, j] + (end[i, j] - start[i, j]) * ease
        sheet.fill_between(
            x, upper, upper + counts[i, j], color=colours[i], alpha=0.55 if i == j else 0.3, lw=0
        )


def _name(
    sheet: Axes,
    x: float,
    names: list[str],
    codes: npt.NDArray[np.int64],
    tops: npt.NDArray[np.float64],
    scale: float,
) -> None:
    """Write labels beside the last column, apart from each other."""
    counts = np.bincount(codes, minlength=len(names))
    lowest = -np.inf
    for k, (name, count) in enumerate(zip(names, counts, strict=True)):
        y = max(tops[k] + count * scale / 2 + 0.035, lowest + 0.125)
        lowest = y
        write(sheet, x, y, f"{name}  {count:,}", width=_WORDS - 0.1, size=7)
