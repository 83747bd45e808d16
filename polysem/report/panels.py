"""The charts of one unit: how it is distributed over images, over classes, and its statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from polysem.report.page import (
    GREY,
    INK,
    LIGHT,
    TAIL_COLOURS,
    fit,
    number,
    panel,
    text_width,
    write,
)
from polysem.report.unit import Exemplar, Unit, class_name

__all__ = [
    "class_rows", "draw_class_profile", "draw_histogram", "draw_sparkline",
    "draw_spread", "write_statistics",
]  # fmt: skip

#: Classes shown where there are more than this many: the first and the last ones.
_MOST_CLASSES, _FIRST, _LAST = 20, 12, 6

#: Widest name of a class, inches.
_LABEL_WIDTH = 1.2

#: Distance between the lines of the table of statistics, inches.
_LINE = 0.155

_BINS = 40

#: Excess kurtosis above which counts are drawn on a logarithmic axis.
_HEAVY_TAIL = 3.0

_STATISTICS = (
    ("mean", "mean"),
    ("variance", "std. dev."),
    ("skewness", "skewness"),
    ("kurtosis", "excess kurtosis"),
    ("sparsity", "Hoyer sparsity"),
    ("positive_share", "share above 0"),
    ("min", "minimum"),
    ("max", "maximum"),
)


def draw_histogram(
    sheet: Axes,
    box: tuple[float, float, float, float],
    unit: Unit,
    exemplars: dict[str, list[Exemplar]],
) -> None:
    """Draw the distribution of a unit over the sampled images into a box of the sheet.

    Above the histogram of each tail's pool a strip marks quantiles and exemplars.
    """
    left, top, width, height = box
    pools = {unit.pool(tail): tail for tail in reversed(unit.tails)}
    one_pool_two_tails = len(unit.tails) > len(pools)
    strip = 0.13 * len(pools) + 0.06
    axes = panel(sheet, left, top + strip, width, height - strip)
    low, high = _range(unit, list(pools))
    edges = np.linspace(low, high, _BINS + 1)
    heavy = any(unit.get("kurtosis", pool) > _HEAVY_TAIL for pool in pools)
    largest, floor = 1, 0.5 if heavy else 0.0
    for pool, tail in pools.items():
        values = unit.statistics["sample_value"].sel(pool=pool).to_numpy()
        counts = np.histogram(values, edges)[0]
        largest = max(largest, int(counts.max()))
        colour = GREY if one_pool_two_tails else TAIL_COLOURS[tail]
        axes.stairs(counts, edges, baseline=floor, fill=True, color=colour, alpha=0.3, linewidth=0)
        axes.stairs(counts, edges, baseline=floor, color=colour, linewidth=0.8)
    margin = 0.02 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    if heavy:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(floor, 1.6 * largest)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(floor, 1.08 * largest)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _number_axis(axes)
    axes.set_xlabel("activation")
    axes.set_ylabel("images, log scale" if heavy else "images")
    marks = panel(sheet, left, top, width, strip)
    marks.set(xlim=axes.get_xlim(), ylim=(len(pools) + 0.1, -0.4))
    marks.set_axis_off()
    for row, (pool, tail) in enumerate(reversed(pools.items())):
        colour = INK if one_pool_two_tails else TAIL_COLOURS[tail]
        draw_spread(marks, row, unit.quantiles(pool, 0.01, 0.25, 0.5, 0.75, 0.99), colour=colour)
        for each, found in exemplars.items():
            if unit.pool(each) == pool:
                at = [exemplar.value for exemplar in found]
                marks.vlines(at, row - 0.3, row + 0.3, color=TAIL_COLOURS[each], linewidth=0.7)


def _range(unit: Unit, pools: list[str]) -> tuple[float, float]:
    """Return the lowest and highest value; wider where all pools that rank are constant."""
    low = min(unit.get("min", pool) for pool in pools)
    high = max(unit.get("max", pool) for pool in pools)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def draw_sparkline(sheet: Axes, box: tuple[float, float, float, float], unit: Unit) -> None:
    """Draw the histogram of a unit so small that only its shape and range are told."""
    axes = panel(sheet, *box[:3], box[3] - 0.02)
    pools = {unit.pool(tail): tail for tail in reversed(unit.tails)}
    low, high = _range(unit, list(pools))
    for pool, tail in pools.items():
        values = unit.statistics["sample_value"].sel(pool=pool).to_numpy()
        counts, edges = np.histogram(values, np.linspace(low, high, _BINS + 1))
        colour = GREY if len(unit.tails) > len(pools) else TAIL_COLOURS[tail]
        axes.stairs(np.sqrt(counts), edges, fill=True, color=colour, alpha=0.35, linewidth=0)
        axes.stairs(np.sqrt(counts), edges, color=colour, linewidth=0.6)
    axes.set(xlim=(low, high), yticks=[], xticks=[low, high])
    axes.spines["left"].set_visible(False)
    axes.set_xticklabels([number(low, 2), number(high, 2)], size=6)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def draw_spread(
    axes: Axes,
    at: float,
    quantiles: Sequence[float],
    *,
    colour: str,
    upright: bool = False,
    widths: tuple[float, float, float] = (0.8, 3.0, 3.6),
) -> None:
    """Draw five ascending quantiles: a line from the first to the last, a bar over the middle
    three, a dot at the third.
    """  # noqa: D205
    first, second, third, fourth, fifth = quantiles
    lines = axes.vlines if upright else axes.hlines
    lines(at, first, fifth, color=colour, linewidth=widths[0], zorder=2)
    lines(at, second, fourth, color=colour, linewidth=widths[1], zorder=2)
    axes.plot(
        *((at, third) if upright else (third, at)),
        marker="o",
        markersize=widths[2],
        markerfacecolor="white",
        markeredgecolor=colour,
        markeredgewidth=0.9,
        zorder=3,
    )


def class_rows(means: npt.NDArray[np.float64]) -> list[int | None]:
    """Return the classes to show, highest mean first; None is the gap between first and last.

    Classes without an image are left out.
    """
    order = [int(i) for i in np.argsort(-means, kind="stable") if not np.isnan(means[i])]
    if len(order) <= _MOST_CLASSES:
        return list(order)
    return [*order[:_FIRST], None, *order[-_LAST:]]


def draw_class_profile(
    sheet: Axes,
    box: tuple[float, float, float, float],
    unit: Unit,
    classes: list[str] | None,
) -> None:
    """Draw the mean activation of each class into a box of the sheet, highest first.

    A stem joins it to the mean over all images, so that what sets a class apart can be seen
    however far from zero the unit works.
    """
    left, top, width, height = box
    first = unit.class_means(unit.pool("upper"))
    assert first is not None
    rows = class_rows(first)
    n_hidden = int((~np.isnan(first)).sum()) - len(rows) + 1
    labels = [
        f"{n_hidden:,} more" if index is None else class_name(index, classes) for index in rows
    ]
    labels = [fit(label, _LABEL_WIDTH, size=7) for label in labels]
    margin = 0.07 + max(text_width(label, size=7) for label in labels)
    axes = panel(sheet, left + margin, top, width - margin, height)
    pools = {unit.pool(tail): tail for tail in unit.tails}
    for pool, tail in reversed(pools.items()):
        means = unit.class_means(pool)
        assert means is not None
        middle = unit.get("mean", pool)
        colour = GREY if len(unit.tails) > len(pools) else TAIL_COLOURS[tail]
        at = [row for row, index in enumerate(rows) if index is not None]
        shown = [means[index] for index in rows if index is not None]
        axes.axvline(middle, color=colour, linewidth=0.6, alpha=0.6, zorder=1)
        axes.hlines(at, middle, shown, color=colour, linewidth=1.1, zorder=2)
        axes.plot(shown, at, "o", markersize=3.4, color=colour, zorder=3)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), labels)
    for row, tick in enumerate(axes.get_yticklabels()):
        tick.set(color=GREY if rows[row] is None else INK, size=7)
        if rows[row] is None:
            tick.set(style="italic")
    axes.hlines(range(len(rows)), 0, 1, transform=axes.get_yaxis_transform(), color=LIGHT,
                linewidth=0.4, zorder=0)  # fmt: skip
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    _number_axis(axes)
    axes.set_xlabel("mean activation of a class")


def write_statistics(sheet: Axes, box: tuple[float, float, float, float], unit: Unit) -> None:
    """Write a small table of a unit's statistics, one column a pool."""
    left, top, width, _ = box
    names = {"cls": "class tok.", "value": ""}
    coloured = {unit.pool(tail): TAIL_COLOURS[tail] for tail in unit.tails}
    column = min(0.62, (width - 0.9) / len(unit.pools))
    first = top + (0.09 if unit.pools == ["value"] else 0.24)
    for i, pool in enumerate(reversed(unit.pools)):
        x = left + width - i * column
        colour = coloured.get(pool, GREY)
        write(sheet, x, top + 0.09, names.get(pool, pool), size=7, colour=colour, align="right")
        for row, (name, _) in enumerate(_STATISTICS):
            value = unit.get(name, pool)
            text = number(np.sqrt(value) if name == "variance" else value)
            write(sheet, x, first + row * _LINE, text, size=7, align="right")
    for row, (_, words) in enumerate(_STATISTICS):
        write(sheet, left, first + row * _LINE, words, size=7, colour=GREY)


def _number_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,g}".replace("-", "−") if value else "0")
    )
