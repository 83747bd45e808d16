"""Grids of patches, and sums that stay when maps change size."""

from __future__ import annotations

import pytest
import torch
from small_models import images_for, small_cnn, small_vit

from polysem.explain.maps import patch_grid, shrink, spread


def test_the_grid_is_cut_from_the_images() -> None:
    model = small_vit("standard")
    assert patch_grid(model, images_for(model), 6) == (2, 3)
    assert patch_grid(model, torch.zeros(1, 3, 24, 32), 12) == (3, 4)
    cnn = small_cnn("resnet18")
    assert patch_grid(cnn, images_for(cnn), 9) == (3, 3)
    assert patch_grid(cnn, images_for(cnn), 7) == (1, 7)


@pytest.mark.parametrize("size", [(16, 24), (2, 3), (4, 12)])
def test_spreading_keeps_sums(size: tuple[int, int]) -> None:
    maps = torch.randn(5, 2, 3, dtype=torch.float64)
    wide = spread(maps, size)
    assert wide.shape == (5, *size)
    torch.testing.assert_close(wide.sum((1, 2)), maps.sum((1, 2)))


def test_an_even_map_stays_even_whatever_the_size() -> None:
    wide = spread(torch.ones(1, 3, 3, dtype=torch.float64), (32, 20))
    torch.testing.assert_close(wide, torch.full_like(wide, 9 / 640))
    torch.testing.assert_close(wide.sum(), torch.tensor(9.0).double())


@pytest.mark.parametrize("grid", [(2, 3), (1, 1), (6, 12)])
def test_shrinking_sums_over_cells(grid: tuple[int, int]) -> None:
    maps = torch.randn(2, 4, 6, 12, dtype=torch.float64)
    cells = shrink(maps, grid)
    assert cells.shape == (2, 4, *grid)
    torch.testing.assert_close(cells.sum((-2, -1)), maps.sum((-2, -1)))
    torch.testing.assert_close(
        cells[..., 0, 0], maps[..., : 6 // grid[0], : 12 // grid[1]].sum((-2, -1))
    )
    uneven = shrink(torch.ones(1, 5, 7, dtype=torch.float64), (2, 3))
    torch.testing.assert_close(uneven.sum(), torch.tensor(35.0).double())
