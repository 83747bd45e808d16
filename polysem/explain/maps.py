"""Maps between patch grid and image: where tokens lie, and how a map is spread over pixels."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["patch_grid", "shrink", "spread"]


def patch_grid(model: nn.Module, images: Tensor, n_patches: int) -> tuple[int, int]:
    """Return rows and columns of so many patches, cut from these images.

    By the model's patch size; where it has none that fits, a square, or else one row.
    """
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size is not None:
        rows, columns = images.shape[2] // size[0], images.shape[3] // size[1]
        if rows * columns == n_patches:
            return rows, columns
    side = math.isqrt(n_patches)
    return (side, side) if side * side == n_patches else (1, n_patches)


def spread(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Spread maps over the pixels of an image so that their sums stay.

    Bilinear, and divided by the pixels of a cell. The sum is exact where cells are a whole number
    of pixels, and within the rounding of cells to pixels elsewhere.

    Parameters
    ----------
    maps : Tensor
        [image, y, x].
    size : (int, int)
        Height and width of the images.
    """
    cell = (size[0] * size[1]) / (maps.shape[1] * maps.shape[2])
    if size == tuple(maps.shape[1:]):
        return maps
    wide: Tensor = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return wide / cell


def shrink(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum maps [..., y, x] over the cells of a grid, of nearly one size where they do not fit.

    Parameters
    ----------
    maps : Tensor
        [..., y, x].
    grid : (int, int)
        Rows and columns, at most those of the maps.

    Returns
    -------
    Tensor
        [..., row, column]; with cells of one size the sum of each map stays.
    """
    height, width = maps.shape[-2:]
    flat = maps.reshape(-1, 1, height, width)
    if height % grid[0] == 0 and width % grid[1] == 0:
        cell = (height // grid[0], width // grid[1])
        summed = F.avg_pool2d(flat, cell) * (cell[0] * cell[1])
    else:
        summed = F.adaptive_avg_pool2d(flat, grid) * (height * width / (grid[0] * grid[1]))
    return summed.reshape(*maps.shape[:-2], *grid)
