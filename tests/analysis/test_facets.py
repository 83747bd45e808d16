import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.analysis.facets import find_facets, shuffled

CASES = [(n, d) for n in (8, 16, 32) for d in (2, 16, 256)]


def blobs(n_units: int, n: int, d: int, seed: int) -> np.ndarray:
    """Return normal blobs, some round and some stretched."""
    rng = np.random.default_rng(seed)
    stretch = rng.gamma(1.0, size=(n_units, 1, d)) ** rng.integers(0, 2, (n_units, 1, 1))
    return rng.normal(size=(n_units, n, d)) * stretch + rng.normal(size=(n_units, 1, d))


def groups(n_units: int, k: int, n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return k round groups at a distance of some five standard deviations in all, and whose."""
    rng = np.random.default_rng(seed)
    truth = rng.permuted(np.tile(np.arange(n) % k, (n_units, 1)), axis=1)
    centres = np.linalg.qr(rng.normal(size=(n_units, d, k)))[0].swapaxes(1, 2)
    centre = np.take_along_axis(centres, truth[..., None], 1)
    return centre + 0.25 / np.sqrt(d) * rng.normal(size=(n_units, n, d)), truth


def test_a_blob_is_one_facet_whatever_its_shape() -> None:
    counts = [find_facets(blobs(120, n, d, n + d), n_resamples=0).count for n, d in CASES]
    assert np.mean(np.concatenate(counts) == 1) >= 0.95


@pytest.mark.parametrize("k", [2, 3, 4])
def test_groups_are_found_and_are_stable(k: int) -> None:
    points, truth = groups(60, k, 24, 32, k)
    found = find_facets(points)
    assert np.mean(found.count == k) >= 0.9
    right = found.count == k
    assert (found.silhouette[right] > 0.7).all()
    assert np.mean(found.stability[right]) > 0.9
    for group, true in zip(found.group[right], truth[right], strict=True):
        pairs = set(zip(group, true, strict=True))
        assert len(pairs) == k  # one facet a group
        sizes = np.bincount(group)
        assert (np.diff(sizes) <= 0).all()


def test_missing_few_and_equal_exemplars() -> None:
    points, _ = groups(4, 2, 16, 8, 0)
    points[0, 12:] = np.nan
    points[1] = np.nan
    points[2, 5:] = np.nan
    points[3] = points[3, :1]
    found = find_facets(points)
    np.testing.assert_array_equal(found.count, [2, 0, 1, 1])
    np.testing.assert_array_equal((found.group >= 0).sum(1), [12, 0, 5, 16])
    assert np.isfinite(found.excess).tolist() == [True, False, False, False]
    assert np.isnan(found.silhouette[1:]).all()
    assert find_facets(np.empty((0, 16, 8))).count.shape == (0,)


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), shift=st.floats(-3, 3))
def test_turning_stretching_and_moving_changes_nothing(
    seed: int, scale: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    points, _ = groups(5, 3, 18, 6, seed)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    one, other = find_facets(points), find_facets(scale * (points @ turn + shift))
    np.testing.assert_array_equal(one.count, other.count)
    np.testing.assert_array_equal(one.group, other.group)


def test_units_do_not_depend_on_each_other() -> None:
    points, _ = groups(6, 2, 16, 8, 3)
    whole, alone = find_facets(points), find_facets(points[2:3])
    np.testing.assert_allclose(whole.excess[2], alone.excess[0], rtol=1e-4)
    np.testing.assert_array_equal(whole.group[2], alone.group[0])


def test_what_stands_out_by_itself_is_no_facet_among_shuffled() -> None:
    """Sparse coordinates: single exemplars stand far out; two patterns of them are two facets."""
    rng = np.random.default_rng(0)
    n_units, n_dims = 100, 48
    sparse = rng.lognormal(0, 1, (n_units, 16, n_dims)) * (rng.random((n_units, 16, n_dims)) < 0.2)
    drivers = rng.dirichlet(np.full(n_dims, 0.05), (n_units, 2))[:, np.arange(16) % 2]
    driven = drivers * rng.lognormal(0, 0.5, sparse.shape) + 0.1 * sparse / n_dims
    roots = [np.sqrt(part / part.sum(-1, keepdims=True)) for part in (sparse, driven)]
    alone, two = (find_facets(part, null=shuffled, n_resamples=1).count for part in roots)
    assert (alone > 1).mean() <= 0.05
    assert (two == 2).mean() >= 0.9
    assert (find_facets(roots[0], n_resamples=1).count > 1).mean() > 0.15  # blobs mistake it
