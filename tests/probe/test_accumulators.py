"""Streaming statistics against brute force in float64, and the laws of merging."""

import hashlib

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.probe.accumulators import ClassSums, ImageSample, Moments, image_hash, rank_error

POOLS, UNITS = 2, 5


def activations(n: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    """[pool, image, unit], heavy-tailed, unit 1 constant."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(4, size=(POOLS, n, UNITS)) + offset
    values[:, :, 1] = 3.5
    return torch.from_numpy(values).float()


def filled(values: torch.Tensor, sizes: list[int]) -> Moments:
    moments = Moments(POOLS, UNITS)
    for part in values.split(sizes, dim=1):
        moments.update(part)
    return moments


@pytest.mark.parametrize("offset", [0.0, -7.0, 1e4])
def test_moments_equal_brute_force(offset: float) -> None:
    values = activations(211, offset=offset)
    moments = filled(values, [64, 64, 64, 19])
    exact = values.double().numpy()
    np.testing.assert_allclose(moments.mean, exact.mean(1), rtol=1e-12)
    np.testing.assert_allclose(moments.variance(), exact.var(1), rtol=1e-9, atol=1e-18)
    varying = [0, 2, 3, 4]
    some = exact[:, :, varying]
    np.testing.assert_allclose(
        moments.skewness()[:, varying], scipy.stats.skew(some, axis=1), rtol=1e-6
    )
    np.testing.assert_allclose(
        moments.kurtosis()[:, varying], scipy.stats.kurtosis(some, axis=1), rtol=1e-6
    )
    assert moments.skewness()[:, 1].isnan().all()
    assert moments.kurtosis()[:, 1].isnan().all()
    np.testing.assert_array_equal(moments.min, exact.min(1))
    np.testing.assert_array_equal(moments.max, exact.max(1))
    np.testing.assert_allclose(moments.positive_share(), (exact > 0).mean(1))


def test_sparsity_has_its_extremes() -> None:
    values = torch.zeros(1, 9, 3)
    values[0, 4, 0] = 2.0  # one image alone
    values[0, :, 1] = -1.5  # all alike
    moments = Moments(1, 3)
    moments.update(values)
    sparsity = moments.sparsity()[0]
    assert sparsity[0] == pytest.approx(1)
    assert sparsity[1] == pytest.approx(0, abs=1e-12)
    assert sparsity[2].isnan()  # never active


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(4)), split=st.integers(1, 3), seed=st.integers(0, 99))
def test_moments_merge_in_any_order_and_grouping(order: list[int], split: int, seed: int) -> None:
    values = activations(40, seed)
    parts = [filled(part, [part.shape[1]]) for part in values.split([3, 17, 1, 19], dim=1)]
    groups = [[parts[i] for i in order[:split]], [parts[i] for i in order[split:]]]
    for group in groups:
        for part in group[1:]:
            group[0].merge(part)
    groups[0][0].merge(groups[1][0])
    whole = filled(values, [40])
    for name in ("count", "min", "max", "positive"):
        assert torch.equal(getattr(groups[0][0], name), getattr(whole, name))
    for name in ("mean", "m2", "m3", "m4", "abs_sum"):
        np.testing.assert_allclose(
            getattr(groups[0][0], name), getattr(whole, name), rtol=1e-9, atol=1e-9
        )


def test_merging_with_nothing_changes_nothing() -> None:
    moments = filled(activations(10), [10])
    before = {name: value.clone() for name, value in moments.state_dict().items()}
    moments.merge(Moments(POOLS, UNITS))
    empty = Moments(POOLS, UNITS)
    empty.merge(moments)
    for name, value in before.items():
        assert torch.equal(moments.state_dict()[name], value)
        torch.testing.assert_close(empty.state_dict()[name], value)


def test_state_dict_carries_everything() -> None:
    first, second = Moments(POOLS, UNITS), Moments(POOLS, UNITS)
    first.update(activations(7))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.kurtosis()[:, 0], second.kurtosis()[:, 0])


def test_nan_reaches_the_extremes() -> None:
    values = activations(6)
    values[0, 2, 3] = torch.nan
    moments = filled(values, [6])
    assert moments.max[0, 3].isnan()
    assert not moments.max[0, 0].isnan()


@settings(deadline=None, max_examples=25)
@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=30), cut=st.integers(0, 30))
def test_class_sums_equal_brute_force_and_merge(labels: list[int], cut: int) -> None:
    values, classes = activations(len(labels)), torch.tensor(labels)
    first, second = ClassSums(3, POOLS, UNITS), ClassSums(3, POOLS, UNITS)
    first.update(values[:, :cut], classes[:cut])
    second.update(values[:, cut:], classes[cut:])
    first.merge(second)
    for c in range(3):
        exact = values[:, classes == c].double().sum(1)
        np.testing.assert_allclose(first.sums[c], exact, atol=1e-12)
        assert first.count[c] == (classes == c).sum()


def sampled(values: torch.Tensor, m: int, images: torch.Tensor) -> ImageSample:
    sample = ImageSample(m, POOLS, UNITS)
    hashes = torch.from_numpy(image_hash([f"image-{i}" for i in images.tolist()]))
    for rows in torch.arange(len(images)).split(7):
        sample.update(values[:, rows], images[rows], hashes[rows])
    return sample


def test_a_sample_of_all_images_gives_exact_values() -> None:
    values = activations(23)
    images, kept = sampled(values, 40, torch.arange(23)).sorted()
    assert images.tolist() == list(range(23))
    assert torch.equal(kept, values)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), cut=st.integers(0, 60))
def test_samples_do_not_depend_on_order_or_shards(seed: int, cut: int) -> None:
    values, order = activations(60), torch.randperm(60, generator=torch.manual_seed(seed))
    whole = sampled(values, 16, torch.arange(60))
    first = sampled(values[:, order[:cut]], 16, order[:cut])
    first.merge(sampled(values[:, order[cut:]], 16, order[cut:]))
    for mine, theirs in zip(first.sorted(), whole.sorted(), strict=True):
        assert torch.equal(mine, theirs)


def test_quantiles_keep_the_stated_rank_error() -> None:
    n, m = 4000, 256
    values = activations(n)
    _, kept = sampled(values, m, torch.arange(n)).sorted()
    stated = rank_error(m, n)
    for unit in (0, 2, 3, 4):
        exact = np.sort(values[0, :, unit].numpy())
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            estimate = np.quantile(kept[0, :, unit].numpy(), q, method="inverted_cdf")
            rank = np.searchsorted(exact, estimate, side="right") / n
            assert abs(rank - q) <= stated


def test_image_hash_is_the_same_everywhere() -> None:
    # the first 8 bytes of BLAKE2b-64 of b"a", without the lowest bit
    assert image_hash(["a"])[0] == int(hashlib.blake2b(b"a", digest_size=8).hexdigest(), 16) >> 1
    assert image_hash(["a", "b"])[1] == image_hash(["b"])[0]
    assert (image_hash([str(i) for i in range(500)]) >= 0).all()
