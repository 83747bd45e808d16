"""Scores of units over training as ridges: one distribution a snapshot, the first on top."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polysem.report.page import (
    GREY,
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
from polysem.store.evolution import Evolution

__all__ = ["score_ridges"]

#: Scores that are drawn, if they are there, in order of preference.
_DRAWN = {
    "excess_rank": "Excess rank (1: one thing)",
    "ms_above_chance": "Monosemanticity above chance",
    "selectivity": "Class selectivity",
    "kurtosis": "Excess kurtosis",
    "hoyer": "Hoyer sparsity",
}
_COLUMNS, _ROWS = 3, 6

#: Faces that a distribution needs.
_ENOUGH = 20

#: Inches: between ridges, and how far one may rise; words before the first column.
_STEP, _RISE, _WORDS, _GAP, _BETWEEN = 0.22, 0.42, 0.5, 0.3, 0.62

_BINS = 96


@styled
def score_ridges(evolution: Evolution) -> Figure:
    """Draw how scores of a site's units are distributed at each snapshot.

    Columns are scores, rows sites, spread evenly over the network where there are many.

    Returns
    -------
    Figure
        Ten inches wide.
    """
    table = evolution.table("trajectories")
    living = table[~table["dead"]]
    scores = [name for name in _DRAWN if living[name].notna().any()][:_COLUMNS]
    sites = _some(living)
    steps = evolution.steps
    high = _RISE + _STEP * (len(steps) - 1)
    foot = 1.15 + max(1, len(sites)) * (high + _BETWEEN) - 0.3
    sheet = page(WIDTH, foot + 0.22)
    name = evolution.manifest["model"]["name"]
    write_title(sheet, "Scores over training", _facts(evolution, name))
    width = (INNER - _WORDS - (_COLUMNS - 1) * _GAP) / _COLUMNS
    ranges = {name: _range(living[name]) for name in scores}
    for c, score in enumerate(scores):
        left = MARGIN + _WORDS + c * (width + _GAP)
        write(sheet, left, 0.84, _DRAWN[score], width=width, size=8, weight="bold")
        for r, site in enumerate(sites):
            top = 1.15 + r * (high + _BETWEEN)
            if c == 0:
                write(sheet, MARGIN, top - 0.08, site, width=width + _WORDS, size=7.5)
            here = living[living["site"] == site]
            axes = panel(sheet, left, top, width, high)
            _draw(axes, here, score, steps, ranges[score], high, named=c == 0)
    if not sites:
        write(sheet, MARGIN, 1.2, f"no site has {_ENOUGH} living faces of units", colour=GREY)
    notes = ["Each ridge is scaled to its own peak. White line: median. Living faces of units."]
    write_notes(sheet, foot + 0.06, notes)
    return figure_of(sheet)


def _facts(evolution: Evolution, name: str) -> str:
    data = evolution.manifest["data"]
    return (
        f"{name}, {len(evolution.steps)} snapshots, {data['n_images']:,} images of {data['name']}"
    )


def _some(living: pd.DataFrame) -> list[str]:
    """Return the sites that are drawn: with units enough, at most so many, evenly spread."""
    last = living[living["step"] == living["step"].max()]
    counts = last.groupby("site", sort=False).size()
    sites = [str(site) for site in counts.index[counts >= _ENOUGH]]
    chosen = np.unique(np.linspace(0, len(sites) - 1, min(_ROWS, len(sites))).round().astype(int))
    return [sites[i] for i in chosen]


def _range(values: pd.Series[float]) -> tuple[float, float]:
    known = values.to_numpy(dtype=float)
    known = known[np.isfinite(known)]
    low, high = np.quantile(known, (0.005, 0.995))
    # scores that are all but alike are a line at their value, not a ridge of rounding
    spare = 0.06 * (high - low) if high - low > 1e-3 * abs(high) else 0.1 * max(abs(high), 1e-3)
    return low - spare, high + spare


def _draw(
    axes: Axes,
    here: pd.DataFrame,
    score: str,
    steps: list[int],
    limits: tuple[float, float],
    high: float,
    *,
    named: bool,
) -> None:
    colours = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.1, len(steps)))
    grid = np.linspace(*limits, _BINS)
    axes.set(xlim=limits, ylim=(0, high))
    for i, step in enumerate(steps):
        base = high - _RISE - _STEP * i
        values = here.loc[here["step"] == step, score].to_numpy(dtype=float)
        values = values[np.isfinite(values)]
        axes.axhline(base, color=LIGHT, lw=0.4, zorder=2 * i)
        if named:
            axes.text(
                -0.02, base, f"{step:,}", transform=axes.get_yaxis_transform(), ha="right",
                va="bottom", size=7, color=GREY,
            )  # fmt: skip
        if len(values) < 2:
            continue
        ridge = base + 0.95 * _RISE * _density(values, limits)
        axes.fill_between(grid, base, ridge, color=colours[i], lw=0, zorder=2 * i)
        axes.plot(grid, ridge, color=INK, lw=0.5, zorder=2 * i + 1)
        median = float(np.clip(np.median(values), *limits))
        top = float(np.interp(median, grid, ridge))
        axes.vlines(median, base, top, color="white", lw=1.1, zorder=2 * i + 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _density(
    values: npt.NDArray[np.float64], limits: tuple[float, float]
) -> npt.NDArray[np.float64]:
    """Return how often values occur over the range, smoothed, 1 at the peak."""
    counts, _ = np.histogram(values, bins=_BINS, range=limits)
    width = 1.6
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / width) ** 2)
    smooth = np.convolve(counts, kernel, mode="same")
    return np.asarray(smooth / max(smooth.max(), 1e-12))
