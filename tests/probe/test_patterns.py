"""Attention entropy and distance against the slow definition."""

import math

import numpy as np
import pytest
import torch

from polysem.probe.patterns import patch_distances, pattern_statistics


@pytest.mark.parametrize(("grid", "prefix"), [((3, 3), 0), ((2, 4), 1), ((1, 5), 3)])
def test_statistics_equal_the_definition(grid: tuple[int, int], prefix: int) -> None:
    n_patches = grid[0] * grid[1]
    n = prefix + n_patches
    scores = 3 * torch.randn(7, 2, n, n, generator=torch.manual_seed(0), dtype=torch.float64)
    places = [(i // grid[1], i % grid[1]) for i in range(n_patches)]
    parts = scores.float().split(3)
    found = pattern_statistics(parts, patch_distances(grid, prefix), prefix)
    for image in range(7):
        for head in range(2):
            pattern = scores[image, head].softmax(-1).numpy()
            entropy = np.mean([-(row * np.log(row)).sum() for row in pattern])
            reach = []
            for i in range(n_patches):
                row = pattern[prefix + i, prefix:]
                away = [math.dist(places[i], places[j]) for j in range(n_patches)]
                reach.append((row * away).sum() / row.sum())
            assert found[0, image, head] == pytest.approx(entropy, rel=1e-5)
            assert found[1, image, head] == pytest.approx(np.mean(reach), rel=1e-5)


def test_extremes_and_masked_keys() -> None:
    distances = patch_distances((2, 2), 1)
    uniform = pattern_statistics([torch.zeros(1, 1, 5, 5)], distances, 1)
    assert uniform[0].item() == pytest.approx(math.log(5), rel=1e-6)
    assert uniform[1].item() == pytest.approx((0 + 1 + 1 + math.sqrt(2)) / 4, rel=1e-6)
    itself = torch.full((1, 1, 5, 5), -torch.inf)
    itself[0, 0].fill_diagonal_(0.0)
    assert pattern_statistics([itself], distances, 1).flatten().tolist() == pytest.approx([0, 0])


def test_scores_are_left_alone() -> None:
    scores = torch.randn(2, 3, 4, 4)
    before = scores.clone()
    pattern_statistics([scores], patch_distances((2, 2), 0), 0)
    assert torch.equal(scores, before)
