"""Groups are found where they were planted and trusted only there."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from polysem.analysis.grouping import (
    NO_GROUP,
    covered_silhouette,
    find_groups,
    map_points,
    null_silhouettes,
    reduced,
    stability,
)


def planted(n_groups: int, n: int = 150, spread: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.arange(n) % n_groups
    centres = np.linalg.qr(rng.normal(size=(24, 24)))[0][:n_groups]
    points = centres[truth] + spread * rng.normal(size=(n, 24)) / np.sqrt(24)
    return points / np.linalg.norm(points, axis=1, keepdims=True), truth


def test_planted_groups_are_found_firmly_and_beyond_chance() -> None:
    directions, truth = planted(4)
    points = reduced(directions)
    labels, firmness = find_groups(points, 5)
    assert adjusted_rand_score(truth, labels) == 1
    assert ((firmness >= 0) & (firmness <= 1)).all()
    assert min(stability(points, labels, 5)) > 0.9
    assert covered_silhouette(points, labels) > 0.8
    assert max(null_silhouettes(directions, 5, n=5)) < 0.4


def test_noise_is_not_taken_for_groups() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(200, 24))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    points = reduced(noise)
    labels, _ = find_groups(points, 5)
    observed = covered_silhouette(points, labels)
    assert observed <= max(null_silhouettes(noise, 5, n=10)) + 0.05


def test_few_points_have_no_groups() -> None:
    points = np.eye(4)
    labels, _ = find_groups(points, 5)
    assert (labels == NO_GROUP).all()
    assert covered_silhouette(points, labels) == 0


def test_points_in_no_group_count_nothing() -> None:
    points = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1], [-1, 0], [0, -1]])
    labels = np.array([0, 0, 1, 1, NO_GROUP, NO_GROUP])
    assert covered_silhouette(points, labels) == pytest.approx(4 / 6)


def test_map_keeps_groups_together_and_is_the_same_every_time() -> None:
    directions, truth = planted(3, 60)
    places = map_points(directions)
    centres = np.stack([places[truth == g].mean(0) for g in range(3)])
    within = np.linalg.norm(places - centres[truth], axis=1).mean()
    across = np.linalg.norm(centres[:, None] - centres[None], axis=-1).max()
    assert across > 2 * within
    np.testing.assert_array_equal(places, map_points(directions))


def test_a_map_leaves_the_threads_of_torch_as_they_are() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        map_points(np.random.default_rng(0).normal(size=(60, 5)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [3, 4])
def test_few_points_have_a_map_too(n: int) -> None:
    places = map_points(planted(3, n)[0])
    assert places.shape == (n, 2)
    assert np.isfinite(places).all()
