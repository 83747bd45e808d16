"""Where patches are, told to attention: a learned bias between query and key, for `attention`.

Positions that are added to tokens are in `embed`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polysem.errors import SpecError

__all__ = ["PositionBias", "grid_of"]


class PositionBias(nn.Module):
    """A learned number for each head and each offset between query and key on the patch grid.

    Added to attention logits it tells patches where they are relative to each other, without
    adding anything to the patches: a B-cos network stays one matrix W(x). As in Swin
    (arXiv 2103.14030, eq. 4), there in windows. Offsets beyond the trained grid count as the
    farthest one trained, so that a model can read larger square pictures.

    Parameters
    ----------
    n_heads : int
    grid : (int, int)
        Rows and columns of patches in training.

    Attributes
    ----------
    table : nn.Parameter
        [head, y, x] of shape ``(n_heads, 2·rows − 1, 2·columns − 1)``; the middle is offset 0,
        and offsets are those of the query minus those of the key.
    """

    offsets: Tensor

    def __init__(
        self,
        n_heads: int,
        grid: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        shape = (n_heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
        self.table = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        offsets = _offsets(grid, grid, self.table.device)
        self.register_buffer("offsets", offsets, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw small numbers: at first every patch looks almost evenly far."""
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, n_patches: int, kept: Tensor | None = None) -> Tensor:
        """Return the bias [head, query, key] for so many patches in row-major order.

        Parameters
        ----------
        n_patches : int
            The trained grid, or a square.
        kept : Tensor, optional
            Numbers [image, token] of the patches that are left; the bias between these is
            [image, head, query, key].

        Raises
        ------
        SpecError
            If they are neither the trained grid nor a square.
        """
        offsets, grid = self.offsets, grid_of(n_patches, self.grid)
        if grid != self.grid:
            offsets = _offsets(grid, self.grid, self.table.device)
        if kept is not None:
            offsets = offsets[kept[:, :, None], kept[:, None, :]]
        bias = self.table.flatten(1).index_select(1, offsets.flatten())
        bias = torch.unflatten(bias, 1, offsets.shape)
        return bias if kept is None else bias.transpose(0, 1)


def grid_of(n_patches: int, trained: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of so many patches: the trained grid, or a square.

    Raises
    ------
    SpecError
        If they are neither.
    """
    side = math.isqrt(n_patches)
    if n_patches == trained[0] * trained[1]:
        return trained
    if side * side != n_patches:
        raise SpecError(
            f"{n_patches} patches are neither the trained grid {trained} nor a square; "
            "attention positions need one of them"
        )
    return side, side


def _offsets(grid: tuple[int, int], trained: tuple[int, int], device: torch.device) -> Tensor:
    """Return the index [query, key] into a flattened table of offsets, clamped to the trained."""
    rows, columns = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    y = _difference(rows.flatten(), trained[0] - 1)
    x = _difference(columns.flatten(), trained[1] - 1)
    return (y * (2 * trained[1] - 1) + x).int()


def _difference(place: Tensor, farthest: int) -> Tensor:
    return (place[:, None] - place[None, :]).clamp(-farthest, farthest) + farthest
