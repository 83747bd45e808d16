"""The grid pointing game against a slow version of its rules, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polysem.errors import DataError, NonFiniteError, SpecError
from polysem.explain.pointing import (
    cell_edges,
    cell_scores,
    choose_grids,
    confidence_of,
    positive_shares,
    tile,
)

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.sampled_from([2, 3, 4])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_shares(values: np.ndarray, n: int) -> list[float]:
    """Sum positive values pixel by pixel into the cell that each pixel is in."""
    height, width = values.shape
    rows, columns = cell_edges(height, n), cell_edges(width, n)
    mass = [0.0] * (n * n)
    for y in range(height):
        for x in range(width):
            row = max(i for i in range(n) if rows[i] <= y)
            column = max(i for i in range(n) if columns[i] <= x)
            mass[row * n + column] += max(values[y, x], 0.0)
    return [m / sum(mass) if sum(mass) else 0.0 for m in mass]


@given(SEEDS, SIDES, st.integers(5, 17), st.integers(5, 17))
@settings(max_examples=25, deadline=None)
def test_shares_are_those_of_the_slow_sum(seed: int, n: int, height: int, width: int) -> None:
    maps = noise(2, height, width, seed=seed)
    shares = positive_shares(maps, n)
    for values, found in zip(maps, shares, strict=True):
        assert found.tolist() == pytest.approx(slow_shares(values.numpy(), n))
        assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("n", [2, 3])
def test_known_answers(n: int) -> None:
    images, targets = torch.zeros(1, 3, 6 * n, 6 * n), torch.arange(n * n)[None]

    def uniform(images: Tensor, targets: Tensor) -> Tensor:
        return torch.ones(len(images), *images.shape[2:])

    def own_cell(images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.full((len(images), *images.shape[2:]), -5.0)
        for one, cell in zip(maps, targets.tolist(), strict=True):
            row, column = divmod(cell, n)
            one[6 * row : 6 * row + 6, 6 * column : 6 * column + 6] = 2
        return maps

    def score(explain: object) -> list[float]:
        return cell_scores(explain, images, targets)[0].tolist()  # type: ignore[arg-type]

    assert score(uniform) == pytest.approx([1 / n**2] * n**2)
    assert score(own_cell) == [1] * n**2
    assert score(lambda images, targets: -uniform(images, targets)) == [0] * n**2
    assert score(lambda images, targets: own_cell(images, (targets + 1) % n**2)) == [0] * n**2


@given(SEEDS, SIDES)
@settings(max_examples=15, deadline=None)
def test_permuting_cells_permutes_scores(seed: int, n: int) -> None:
    """An explanation that looks at each pixel by itself does not care where a picture is."""
    pictures = noise(2, n * n, 3, 5, 7, seed=seed)
    classes = torch.arange(2 * n * n).view(2, n * n)
    order = torch.randperm(n * n, generator=torch.Generator().manual_seed(seed))

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        return images.sum(1) * torch.cos(targets.double())[:, None, None] + 0.1

    before = cell_scores(explain, tile(pictures), classes)
    after = cell_scores(explain, tile(pictures[:, order]), classes[:, order])
    torch.testing.assert_close(after, before[:, order])


def test_smoothing_spreads_over_borders_and_a_uniform_map_stays_uniform() -> None:
    images, targets = torch.zeros(1, 3, 8, 8), torch.arange(4)[None]

    def spike(images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.zeros(1, 8, 8)
        maps[0, 3, 3] = 1  # next to the middle
        return maps

    def ones(images: Tensor, targets: Tensor) -> Tensor:
        return torch.ones(1, 8, 8)

    assert cell_scores(spike, images, targets, smooth=1)[0].tolist() == [1, 0, 0, 0]
    spread = cell_scores(spike, images, targets, smooth=3)[0].tolist()
    assert spread == pytest.approx([4 / 9, 2 / 9, 2 / 9, 1 / 9])
    assert cell_scores(ones, images, targets, smooth=5)[0].tolist() == pytest.approx([0.25] * 4)
    with pytest.raises(SpecError, match="odd number"):
        cell_scores(ones, images, targets, smooth=4)


def test_a_map_that_is_not_finite_is_refused() -> None:
    maps = torch.ones(2, 4, 4)
    maps[1, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="image 1"):
        positive_shares(maps, 2)


def easy(n_classes: int, each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of pictures that are all classified correctly, with confidence."""
    labels = torch.arange(n_classes).repeat_interleave(each)
    logits = noise(len(labels), n_classes, seed=seed)
    logits[torch.arange(len(labels)), labels] += 20
    return logits, labels


@given(SEEDS, st.integers(4, 7), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_grids_follow_the_rules(seed: int, n_classes: int, each: int) -> None:
    logits, labels = easy(n_classes, each, seed)
    grids = choose_grids(logits, labels, 2, confidence="softmax", seed=seed)
    assert len(set(grids.ravel().tolist())) == grids.size  # no picture twice
    taken: dict[int, list[float]] = {}
    for grid in grids:
        classes = labels[torch.from_numpy(grid)].tolist()
        assert len(set(classes)) == 4
        for picture, label in zip(grid, classes, strict=True):
            taken.setdefault(label, []).append(logits[picture, label].item())
    for label, values in taken.items():
        best = logits[labels == label, label].sort(descending=True).values[: len(values)]
        assert values == best.tolist()  # none of the better ones was passed over
    left = {c for c in range(n_classes) if len(taken.get(c, [])) < each}
    assert len(left) < 4  # it stopped because it had to
    np.testing.assert_array_equal(
        grids, choose_grids(logits, labels, 2, confidence="softmax", seed=seed)
    )


def test_a_limit_gives_the_first_grids() -> None:
    logits, labels = easy(6, 5)
    all_of_them = choose_grids(logits, labels, 2, confidence="sigmoid")
    np.testing.assert_array_equal(
        choose_grids(logits, labels, 2, confidence="sigmoid", limit=3), all_of_them[:3]
    )


def test_only_sure_and_correct_pictures_are_taken() -> None:
    # five pictures of classes 0 to 3: the last is class 0 again
    logits = torch.full((5, 4), -4.0)
    labels = torch.tensor([0, 1, 2, 3, 0])
    logits[torch.arange(5), labels] = 3.0
    assert len(choose_grids(logits, labels, 2, confidence="sigmoid")) == 1
    wrong = logits.clone()
    wrong[1, 2] = 9
    with pytest.raises(DataError, match="needs 4 classes, and only 3"):
        choose_grids(wrong, labels, 2, confidence="softmax")
    # all logits shifted: no sigmoid is sure any more, and the softmax is the same
    with pytest.raises(DataError, match="only 0"):
        choose_grids(logits - 5, labels, 2, confidence="sigmoid")
    assert len(choose_grids(logits - 5, labels, 2, confidence="softmax")) == 1
    with pytest.raises(SpecError, match="at least 2"):
        choose_grids(logits, labels, 1, confidence="softmax")


def test_confidence_is_that_of_the_loss() -> None:
    logits = torch.tensor([[0.0, 0.0]])
    assert confidence_of(logits, "sigmoid").tolist() == [[0.5, 0.5]]
    assert confidence_of(logits, "softmax").tolist() == [[0.5, 0.5]]
    assert confidence_of(logits + 2, "softmax").tolist() == [[0.5, 0.5]]
    assert confidence_of(logits + 2, "sigmoid")[0, 0] > 0.8


def test_tiles_are_row_major_and_keep_their_pixels() -> None:
    pictures = torch.randint(256, (2, 4, 3, 5, 7), dtype=torch.uint8)
    grids = tile(pictures)
    assert grids.shape == (2, 3, 10, 14)
    torch.testing.assert_close(grids[:, :, :5, 7:], pictures[:, 1])
    torch.testing.assert_close(grids[:, :, 5:, :7], pictures[:, 2])


def test_shrunk_tiles_fill_the_size_that_is_asked_for() -> None:
    flat = torch.arange(9, dtype=torch.uint8)[None, :, None, None, None].expand(2, 9, 3, 32, 32)
    grids = tile(flat * 20, size=(32, 32))
    assert grids.shape == (2, 3, 32, 32)
    assert grids.dtype == torch.uint8
    edges = cell_edges(32, 3)
    for cell in range(9):
        y, x = edges[cell // 3], edges[cell % 3]
        assert (grids[:, :, y : y + 10, x : x + 10] == cell * 20).all()
