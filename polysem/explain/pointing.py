"""The grid pointing game: whether what speaks for a class lies on its picture.

Pictures of different classes are tiled n × n, and the logit of each is explained in turn. The
score is the share of positive contribution that falls into the cell of the class itself.

Böhle, Fritz, Schiele: Convolutional Dynamic Alignment Networks, arXiv 2104.00032, and B-cos
Networks, arXiv 2205.10268. Two things differ from the released code. Its running index skips a
picture after each grid, so that ranks drift apart; here each class goes down its own list. Its
confidence is a sigmoid for every model; here a model trained with softmax is asked its softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from polysem.errors import DataError, SpecError
from polysem.explain.forward import require_finite_map

__all__ = [
    "Confidence",
    "cell_edges",
    "cell_scores",
    "check_smooth",
    "choose_grids",
    "confidence_of",
    "positive_shares",
    "tile",
]

Confidence = Literal["sigmoid", "softmax"]


def confidence_of(logits: Tensor, confidence: Confidence) -> Tensor:
    """Turn logits [image, class] into confidences in [0, 1], as the model's loss reads them."""
    return logits.sigmoid() if confidence == "sigmoid" else logits.softmax(-1)


def choose_grids(
    logits: Tensor,
    labels: Tensor,
    n: int,
    *,
    confidence: Confidence,
    threshold: float = 0.5,
    limit: int | None = None,
    seed: int = 0,
) -> npt.NDArray[np.int64]:
    """Choose the pictures of grids of n × n, all of different classes within a grid.

    Pictures that are classified correctly, with a confidence above `threshold`, are ranked within
    their class by their logit. Each grid draws n² classes that still have pictures, and takes the
    next of each. Classes run out one by one; there are no more grids once fewer than n² are left.

    Parameters
    ----------
    logits : Tensor [image, class]
    labels : int Tensor [image]
    n : int
        Cells a side.
    confidence : {"sigmoid", "softmax"}
    threshold : float
    limit : int, optional
        At most so many grids.
    seed : int
        Of the classes drawn.

    Returns
    -------
    int64 array [grid, cell]
        Numbers of the pictures, each used at most once; cells in row-major order.

    Raises
    ------
    SpecError
        If `n` is below 2.
    DataError
        If there are too few classes with such pictures for a single grid.
    """
    if n < 2:
        raise SpecError(f"a grid needs at least 2 × 2 cells, not {n} × {n}")
    sure = confidence_of(logits, confidence).gather(1, labels[:, None])[:, 0] > threshold
    fit = (sure & (logits.argmax(1) == labels)).nonzero()[:, 0]
    own = logits[fit, labels[fit]]
    ranked = fit[own.argsort(descending=True, stable=True)].cpu().numpy()
    label_of = labels.cpu().numpy()
    queues = {int(c): list(ranked[label_of[ranked] == c]) for c in np.unique(label_of[ranked])}
    if len(queues) < n * n:
        raise DataError(
            f"a grid of {n} × {n} needs {n * n} classes, and only {len(queues)} have a picture "
            f"that the model classifies correctly with a confidence above {threshold}: give more "
            "images or a smaller grid"
        )
    rng = np.random.default_rng(seed)
    grids: list[list[int]] = []
    while len(queues) >= n * n and (limit is None or len(grids) < limit):
        drawn = rng.choice(sorted(queues), n * n, replace=False)
        grids.append([int(queues[c].pop(0)) for c in drawn])
        queues = {c: queue for c, queue in queues.items() if queue}
    return np.array(grids, dtype=np.int64)


def tile(pictures: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """Put n² pictures [grid, cell, channel, y, x] side by side, in row-major order.

    Parameters
    ----------
    pictures : uint8 or float Tensor
    size : (int, int), optional
        Height and width of the grids: pictures shrink into their cells, with antialiasing. By
        default they keep their size, and the grids are n times as high and wide.

    Returns
    -------
    Tensor [grid, channel, y, x], of the type of the pictures
    """
    n = _side(pictures.shape[1])
    if size is None:
        return rearrange(pictures, "grid (r c) channel y x -> grid channel (r y) (c x)", r=n)
    top, left = cell_edges(size[0], n), cell_edges(size[1], n)
    grids = pictures.new_empty(len(pictures), pictures.shape[2], *size)
    for cell in range(n * n):
        rows = slice(top[cell // n], top[cell // n + 1])
        columns = slice(left[cell % n], left[cell % n + 1])
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        small = F.interpolate(
            pictures[:, cell].float(), shape, mode="bilinear", antialias=True, align_corners=False
        )
        if not pictures.is_floating_point():
            small = small.round_().clamp_(0, 255)
        grids[:, :, rows, columns] = small.to(pictures.dtype)
    return grids


def cell_edges(length: int, n: int) -> list[int]:
    """Return where `n` cells of almost equal length begin, and where the last ends.

    >>> cell_edges(32, 3)
    [0, 11, 21, 32]
    """
    return [round(i * length / n) for i in range(n + 1)]


def cell_scores(
    explain: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    *,
    smooth: int = 1,
) -> Tensor:
    """Score every cell of every grid: the share of positive contribution in the class's own cell.

    Parameters
    ----------
    explain : callable
        ``explain(images, targets) -> maps``: signed contributions [grid, y, x] to the logits of
        the classes `targets` [grid].
    images : Tensor [grid, channel, y, x]
        Tiled pictures as the model takes them.
    targets : int Tensor [grid, cell]
        Class of each cell, row by row.
    smooth : int
        Odd side of the window whose mean replaces each contribution before anything else; 1 leaves
        maps as they are.

    Returns
    -------
    Tensor [grid, cell]
        In [0, 1], the higher the better: 1/n² for a map that is the same everywhere, 1 if all lies
        in the own cell, 0 if nothing is positive.

    Raises
    ------
    NonFiniteError
        If a map holds NaN or infinity.
    """
    n = _side(targets.shape[1])
    scores = []
    for cell in range(n * n):
        maps = explain(images, targets[:, cell]).double()
        scores.append(positive_shares(_smoothed(maps, smooth), n)[:, cell])
    return torch.stack(scores, 1)


def positive_shares(maps: Tensor, n: int) -> Tensor:
    """Return which share of what is positive in maps [image, y, x] is in each cell [image, cell].

    All are 0 where nothing is positive.
    """
    require_finite_map(maps, "this method")
    positive = maps.clamp_min(0)
    top, left = cell_edges(maps.shape[1], n), cell_edges(maps.shape[2], n)
    mass = torch.stack(
        [
            positive[:, top[r] : top[r + 1], left[c] : left[c + 1]].sum((1, 2))
            for r in range(n)
            for c in range(n)
        ],
        1,
    )
    total = positive.sum((1, 2))[:, None]
    return torch.where(total > 0, mass / total.where(total > 0, 1), 0)


def check_smooth(window: int) -> None:
    """Refuse a window without a middle, with a `SpecError`."""
    if window < 1 or window % 2 == 0:
        raise SpecError(f"smooth must be an odd number of pixels, not {window}")


def _smoothed(maps: Tensor, window: int) -> Tensor:
    check_smooth(window)
    if window == 1:
        return maps
    # at the border the mean is of what is inside of the picture
    return F.avg_pool2d(
        maps[:, None], window, stride=1, padding=window // 2, count_include_pad=False
    )[:, 0]


def _side(cells: int) -> int:
    n = math.isqrt(cells)
    if n * n != cells:
        raise SpecError(f"{cells} cells are no square grid")
    return n
