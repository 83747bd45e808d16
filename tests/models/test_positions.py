"""Positions in attention against slow loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polysem.errors import SpecError
from polysem.models.positions import PositionBias, grid_of

GRID = (2, 3)


def slow_bias(bias: PositionBias, grid: tuple[int, int]) -> Tensor:
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    last_y, last_x = bias.grid[0] - 1, bias.grid[1] - 1
    out = torch.empty(bias.table.shape[0], len(places), len(places), dtype=bias.table.dtype)
    for head in range(len(out)):
        for i, (query_y, query_x) in enumerate(places):
            for j, (key_y, key_x) in enumerate(places):
                y = max(-last_y, min(last_y, query_y - key_y))
                x = max(-last_x, min(last_x, query_x - key_x))
                out[head, i, j] = bias.table[head, last_y + y, last_x + x]
    return out.detach()


@pytest.mark.parametrize(
    ("trained", "grid"),
    [((2, 3), (2, 3)), ((3, 3), (3, 3)), ((3, 3), (5, 5)), ((2, 3), (4, 4)), ((3, 3), (2, 2))],
)
def test_bias_equals_a_slow_loop(trained: tuple[int, int], grid: tuple[int, int]) -> None:
    bias = PositionBias(2, trained)
    torch.nn.init.normal_(bias.table)
    assert torch.equal(bias(grid[0] * grid[1]), slow_bias(bias, grid))


def test_bias_learns_at_every_offset_and_keeps_no_index_in_its_state() -> None:
    bias = PositionBias(2, GRID)
    assert bias.table.shape == (2, 3, 5) and 0 < bias.table.abs().max() < 0.1
    bias(6).sum().backward()
    assert bias.table.grad is not None
    pairs = torch.tensor([1, 2, 1])[:, None] * torch.tensor([1, 2, 3, 2, 1])
    assert torch.equal(bias.table.grad, pairs.expand(2, 3, 5).float())
    assert list(bias.state_dict()) == ["table"]


def test_other_numbers_of_patches_are_refused() -> None:
    with pytest.raises(SpecError, match="10 patches are neither the trained grid"):
        PositionBias(2, GRID)(10)


@pytest.mark.parametrize(("trained", "side"), [((2, 3), None), ((3, 3), 4)])
def test_kept_patches_have_the_bias_of_their_places(
    trained: tuple[int, int], side: int | None
) -> None:
    bias = PositionBias(2, trained)
    torch.nn.init.normal_(bias.table)
    grid = trained if side is None else (side, side)
    n_patches = grid[0] * grid[1]
    kept = torch.stack([torch.randperm(n_patches)[:4] for _ in range(5)])
    whole, some = slow_bias(bias, grid), bias(n_patches, kept)
    assert some.shape == (5, 2, 4, 4)
    for image, places in enumerate(kept.tolist()):
        for i, query in enumerate(places):
            for j, key in enumerate(places):
                assert torch.equal(some[image, :, i, j], whole[:, query, key])
    some.sum().backward()
    assert bias.table.grad is not None
    assert float(bias.table.grad.sum()) == 5 * 2 * 4 * 4


def test_the_grid_is_the_trained_one_or_a_square() -> None:
    assert [grid_of(n, GRID) for n in (6, 4, 9)] == [GRID, (2, 2), (3, 3)]
