"""The streaming monosemanticity score against its pairwise definition in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.probe.accumulators import image_hash
from polysem.probe.bench_monosemanticity import pairwise_monosemanticity
from polysem.probe.bootstrap import poisson_weights
from polysem.probe.embedding_sums import EmbeddingSums

TAILS, UNITS, DIM, R = 2, 5, 7, 3


def data(n: int, seed: int = 0, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations [tail, image, unit] with unit 1 constant, and embeddings [image, dim]."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(0.5, size=(TAILS, n, UNITS)) + offset
    values[:, :, 1] = 2.5
    return torch.from_numpy(values).float(), torch.from_numpy(rng.normal(0.3, 1, (n, DIM)))


def weights_of(n: int) -> torch.Tensor:
    return poisson_weights(torch.from_numpy(image_hash([str(i) for i in range(n)])), R)


def filled(values: torch.Tensor, e: torch.Tensor, w: torch.Tensor | None, size: int = 64):
    sums = EmbeddingSums(TAILS, values.shape[2], e.shape[1], n_replicates=0 if w is None else R)
    for rows in torch.arange(len(e)).split(size):
        sums.update(values[:, rows], e[rows], None if w is None else w[:, rows])
    return sums


@pytest.mark.parametrize("offset", [0.0, -3.0, 1e3])
def test_score_equals_the_definition_on_2000_images(offset: float) -> None:
    values, e = data(2000, offset=offset)
    score = filled(values, e, None).monosemanticity()
    for tail in range(TAILS):
        exact = pairwise_monosemanticity(values[tail], e)
        varying = [0, 2, 3, 4]
        np.testing.assert_allclose(score[tail, varying], exact[varying], rtol=0, atol=1e-9)
    assert score[:, 1].isnan().all()


def test_replicates_equal_the_definition_with_weights() -> None:
    n = 40
    values, e = data(n)
    w = weights_of(n)
    found = filled(values, e, w, size=9).replicates()
    a = values.double()
    a = (a - a.amin(1, keepdim=True)) / (a.amax(1, keepdim=True) - a.amin(1, keepdim=True))
    directions = e / e.norm(dim=1, keepdim=True)
    pairs = ~torch.eye(n, dtype=torch.bool)  # an image makes no pair with itself
    for r in range(R):
        weighted = a * w[r][:, None]
        both = torch.einsum("tiu,tju->tuij", weighted, weighted)
        exact = (both * (directions @ directions.T) * pairs).sum((2, 3)) / (both * pairs).sum(
            (2, 3)
        )
        np.testing.assert_allclose(found[r], exact, atol=1e-6, equal_nan=True)


def test_centroids_are_weighted_means() -> None:
    values, e = data(30, offset=5.0)
    a = (values - values.amin(1, keepdim=True)).double()
    exact = torch.einsum("tiu,id->tud", a, e / e.norm(dim=1, keepdim=True)) / a.sum(1)[..., None]
    sums = filled(values, e, None)
    np.testing.assert_allclose(sums.centroids(), exact, atol=1e-12, equal_nan=True)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(4)), split=st.integers(1, 3), seed=st.integers(0, 99))
def test_merging_in_any_order_and_grouping(order: list[int], split: int, seed: int) -> None:
    values, e = data(40, seed, offset=10.0)
    w = weights_of(40)
    rows = torch.arange(40).split([3, 17, 1, 19])
    parts = [filled(values[:, some], e[some], w[:, some]) for some in rows]
    groups = [[parts[i] for i in order[:split]], [parts[i] for i in order[split:]]]
    for group in groups:
        for part in group[1:]:
            group[0].merge(part)
    groups[0][0].merge(groups[1][0])
    whole = filled(values, e, w)
    merged = groups[0][0]
    for name in ("monosemanticity", "centroids"):
        np.testing.assert_allclose(
            getattr(merged, name)(), getattr(whole, name)(), atol=1e-10, equal_nan=True
        )
    np.testing.assert_allclose(merged.replicates(), whole.replicates(), atol=1e-5, equal_nan=True)


def test_merging_with_nothing_and_carrying_the_state() -> None:
    values, e = data(10)
    sums, empty = (
        filled(values, e, weights_of(10)),
        EmbeddingSums(TAILS, UNITS, DIM, n_replicates=R),
    )
    before = sums.monosemanticity()
    sums.merge(EmbeddingSums(TAILS, UNITS, DIM, n_replicates=R))
    empty.merge(sums)
    empty.update(values, e, weights_of(10))  # must not write into what it was merged from
    torch.testing.assert_close(sums.monosemanticity(), before, equal_nan=True)
    other = EmbeddingSums(TAILS, UNITS, DIM, n_replicates=R)
    other.load_state_dict(sums.state_dict())
    torch.testing.assert_close(other.monosemanticity(), before, equal_nan=True)


def test_extremes_and_missing_scores() -> None:
    e = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    # alike images; opposite images; one image alone
    values = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).T[None]
    sums = EmbeddingSums(1, 3, 2)
    sums.update(values, e)
    score = sums.monosemanticity()[0]
    np.testing.assert_allclose(score[:2], [1, -1])
    assert score[2].isnan()


def test_state_does_not_grow_with_images() -> None:
    sizes = []
    for n in (8, 80):
        sums = filled(*data(n), weights_of(n))
        sizes.append(sum(v.numel() for v in sums.state_dict().values()))
    assert sizes[0] == sizes[1]
