import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, silhouette_score

from polysem.analysis.k_means import adjusted_rand, k_means, silhouette


def test_clear_groups_are_found_in_every_set() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (7, 15))
    truth[:, :3] = [0, 1, 2]
    centres = 10 * np.eye(3, 5)
    points = torch.from_numpy(centres[truth] + 0.1 * rng.normal(size=(7, 15, 5)))
    groups, within = k_means(points, 3, starts=2)
    for found, true, given, squares in zip(groups.numpy(), truth, points, within, strict=True):
        assert adjusted_rand_score(true, found) == 1
        spread = sum(
            given[true == g].var(0, correction=0).sum() * (true == g).sum() for g in range(3)
        )
        np.testing.assert_allclose(squares, spread, rtol=1e-6)


def test_silhouette_and_rand_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(6, 11, 2))
    one, other = rng.integers(0, 3, (2, 6, 11))
    one[:, :3] = [0, 1, 2]
    one[0] = [0, 1] + [2] * 9  # two points alone in their groups
    score = silhouette(torch.from_numpy(points), torch.from_numpy(one), 3)
    index = adjusted_rand(torch.from_numpy(one), torch.from_numpy(other), 3)
    for row in range(6):
        np.testing.assert_allclose(score[row], silhouette_score(points[row], one[row]), atol=1e-6)
        np.testing.assert_allclose(index[row], adjusted_rand_score(one[row], other[row]), atol=1e-6)


def test_points_that_coincide_leave_a_group_empty() -> None:
    points = torch.zeros(1, 6, 2)
    groups, within = k_means(points, 3, starts=2)
    assert groups.unique().tolist() == [0]
    assert within.item() == 0
    assert silhouette(points, groups, 3).item() == 0
