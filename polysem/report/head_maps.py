"""Pictures of all heads at once: how much each matters, and how they depend on each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from polysem.report.page import (
    INNER,
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
from polysem.report.unit import described
from polysem.store.run import Run

__all__ = ["DIVERGING", "head_facts", "importance_map", "interaction_matrix", "order_alike"]

Floats = npt.NDArray[np.float64]

#: From blue (below zero) over white to vermilion, as of the tails of units.
DIVERGING = LinearSegmentedColormap.from_list(
    "polysem_diverging", [TAIL_COLOURS["lower"], "#ffffff", TAIL_COLOURS["upper"]]
)

#: Heads up to which each row and column of the matrix has its name.
_NAMED = 48


def head_facts(run: Run) -> str:
    """Return what heads were studied on, and what they were held to."""
    gates = run.gates
    text = f"{described(run).split(',')[0]}, {gates.sizes['image']:,} images of "
    text += str(run.manifest["data"]["name"])
    return f"{text}, cost: {'−margin' if gates.attrs['target'] == 'margin' else 'loss'}"


@styled
def importance_map(run: Run) -> Figure:
    """Draw importance as layer by head, one map for each way of taking a head away.

    A dot marks heads whose interval excludes 0.
    """
    table = run.table("heads")
    layers, n_heads = run.gates["layer"].to_numpy(), run.gates.sizes["head"]
    maps = {
        "Head put to zero": "importance_zero",
        "Head put to its mean": "importance_mean",
        "Head of another image": "importance_resample",
    }
    tall = min(4.5, max(1.0, 0.22 * len(layers)))
    sheet = page(WIDTH, 1.1 + tall + 0.75)
    write_title(sheet, "What the network loses without each head", head_facts(run))
    width = (INNER - 2 * 0.35) / 3
    for i, (heading, column) in enumerate(maps.items()):
        left = MARGIN + i * (width + 0.35)
        write(sheet, left, 0.98, heading, size=8, weight="bold")
        values = table[column].to_numpy(dtype=float).reshape(len(layers), n_heads)
        sure = (table[f"{column}_low"] > 0) | (table[f"{column}_high"] < 0)
        _draw_map(
            sheet, (left, 1.1, width, tall), values, sure.to_numpy().reshape(values.shape), layers
        )
    note = (
        "Rise of the cost, mean over images: vermilion heads are needed, without blue ones the "
        "network does better. Dot: the 95 % interval over images excludes 0."
    )
    write_notes(sheet, 1.1 + tall + 0.6, [note])
    return figure_of(sheet)


def _draw_map(
    sheet: Axes,
    box: tuple[float, float, float, float],
    values: Floats,
    sure: npt.NDArray[np.bool_],
    layers: npt.NDArray[np.int64],
) -> None:
    left, top, width, height = box
    axes = panel(sheet, left + 0.3, top, width - 0.8, height)
    drawn = axes.pcolormesh(values, cmap=DIVERGING, norm=_norm(values), edgecolors="white",
                            linewidth=0.6)  # fmt: skip
    y, x = np.nonzero(sure)
    axes.plot(x + 0.5, y + 0.5, "o", markersize=1.8, color="black", markeredgewidth=0)
    n_heads = values.shape[1]
    every, step = max(1, -(-n_heads // 12)), max(1, -(-len(layers) // 24))
    axes.set_xticks(np.arange(0, n_heads, every) + 0.5, [str(h) for h in range(0, n_heads, every)])
    axes.set_yticks(np.arange(0, len(layers), step) + 0.5, [str(n) for n in layers[::step]])
    axes.set(xlabel="head", ylabel="layer")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    _draw_scale(sheet, (left + width - 0.42, top, 0.09, height), drawn)


def _draw_scale(sheet: Axes, box: tuple[float, float, float, float], drawn: object) -> None:
    bar = figure_of(sheet).colorbar(drawn, cax=panel(sheet, *box))  # type: ignore[arg-type]
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=2, labelsize=6.5)
    bar.ax.set_yscale("linear")
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))


def _norm(values: Floats) -> TwoSlopeNorm:
    """Return a scale that is white at 0 and equally long on both sides; NaN is left blank."""
    finite = np.abs(values[np.isfinite(values)])
    size = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    return TwoSlopeNorm(0, -size, size)


@styled
def interaction_matrix(run: Run) -> Figure:
    """Draw the interaction of all pairs, heads that behave alike next to each other."""
    table = run.table("head_pairs")
    heads = run.table("heads")
    n = len(heads)
    matrix = np.zeros((n, n))
    i, j = np.triu_indices(n, 1)
    matrix[i, j] = matrix[j, i] = table["interaction"].to_numpy(dtype=float)
    order = order_alike(matrix)
    names = [f"{row['layer']}.{row['head']}" for row in heads.to_dict("records")]
    side = 7.2
    sheet = page(WIDTH, 1.2 + side + 0.8)
    write_title(sheet, "How heads depend on each other", head_facts(run))
    left = MARGIN + 0.5
    axes = panel(sheet, left, 1.0, side, side)
    shown = matrix[np.ix_(order, order)]
    size = float(np.quantile(np.abs(matrix[i, j]), 0.99)) if len(i) else 0.0
    drawn = axes.imshow(shown, cmap=DIVERGING, norm=TwoSlopeNorm(0, -(size or 1), size or 1))
    if n <= _NAMED:
        labels = [names[k] for k in order]
        axes.set_xticks(range(n), labels, rotation=90, size=5.5)
        axes.set_yticks(range(n), labels, size=5.5)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _draw_scale(sheet, (left + side + 0.25, 1.0, 0.12, side / 2), drawn)
    write(sheet, left + side + 0.25, 0.9, "interaction", size=7)
    text = [
        "Vermilion: the two cover for each other, losing both costs more than the sum. Blue: they "
        "fight, or one only repairs the other.",
        "Heads (layer.head) ordered by average-linkage clustering of their rows; colours end at "
        "the 99 % quantile of |interaction|.",
    ]
    write_notes(sheet, 1.2 + side + 0.5, text)
    return figure_of(sheet)


def order_alike(matrix: Floats) -> npt.NDArray[np.int64]:
    """Return heads so that those with similar rows are neighbours."""
    if len(matrix) < 3:
        return np.arange(len(matrix))
    size = np.linalg.norm(matrix, axis=1)
    unit = matrix / np.where(size > 0, size, 1)[:, None]
    distance = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(distance, 0)
    few = len(matrix) < 300  # the best order of leaves takes long beyond
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=few)
    leaves: npt.NDArray[np.int64] = leaves_list(tree).astype(np.int64)
    return leaves
