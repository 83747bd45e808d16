"""Poisson weights are a function of the image alone; means under them equal brute force."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.probe.accumulators import image_hash
from polysem.probe.bootstrap import BootstrapMeans, poisson_weights


def hashes(n: int) -> torch.Tensor:
    return torch.from_numpy(image_hash([f"image-{i}" for i in range(n)]))


def test_weights_are_poisson_of_mean_one_and_independent() -> None:
    weights = poisson_weights(hashes(4000), 40).numpy()
    assert abs(weights.mean() - 1) < 0.01
    assert abs(weights.var() - 1) < 0.02
    assert abs((weights == 0).mean() - np.exp(-1)) < 0.005
    between = np.corrcoef(weights)[np.triu_indices(40, 1)]
    assert abs(between).max() < 5 / np.sqrt(4000)


def test_more_replicates_or_other_images_do_not_change_a_weight() -> None:
    few, many = poisson_weights(hashes(9), 3), poisson_weights(hashes(20), 7)
    assert torch.equal(few, many[:3, :9])
    order = torch.randperm(20, generator=torch.manual_seed(0))
    assert torch.equal(poisson_weights(hashes(20)[order], 7), many[:, order])


@settings(deadline=None, max_examples=20)
@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=30), cut=st.integers(0, 30))
def test_class_means_equal_brute_force_and_merge(labels: list[int], cut: int) -> None:
    n, classes = len(labels), torch.tensor(labels)
    values = torch.randn(2, n, 5, generator=torch.manual_seed(1)).float()
    weights = poisson_weights(hashes(n), 4)
    first, second = BootstrapMeans(4, 3, 2, 5), BootstrapMeans(4, 3, 2, 5)
    first.update(values[:, :cut], weights[:, :cut], classes[:cut])
    second.update(values[:, cut:], weights[:, cut:], classes[cut:])
    first.merge(second)
    for r in range(4):
        for c in range(3):
            w = weights[r] * (classes == c)
            exact = (w[:, None] * values.double()).sum(1) / w.sum()
            np.testing.assert_allclose(first.class_means()[r, c], exact, atol=1e-12)
        exact = (weights[r][:, None] * values.double()).sum(1) / weights[r].sum()
        np.testing.assert_allclose(first.means()[r], exact, atol=1e-12)


def test_without_classes_all_images_count_alike() -> None:
    values, weights = torch.ones(1, 6, 2), poisson_weights(hashes(6), 3)
    means = BootstrapMeans(3, 1, 1, 2)
    means.update(values, weights, torch.tensor([4, 0, 1, 2, 3, 9]))
    np.testing.assert_allclose(means.means(), 1)
