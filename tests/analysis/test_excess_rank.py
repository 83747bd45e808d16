import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.analysis.excess_rank import excess_eigenvalues, excess_rank, principal_axes

RNG = np.random.default_rng(0)
N = 1500
#: Independent rare concepts, each written in a direction of its own.
PRESENCE = (RNG.random((N, 8)) < 0.15).astype(float)
EMBEDDINGS = PRESENCE @ np.linalg.qr(RNG.normal(size=(12, 12)))[0][:8]
EMBEDDINGS = EMBEDDINGS + 0.05 * RNG.normal(size=EMBEDDINGS.shape)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_it_counts_equal_concepts(k: int) -> None:
    activations = PRESENCE[:, :k].sum(1, keepdims=True)
    assert excess_rank(activations, EMBEDDINGS)[0] == pytest.approx(k, rel=0.1)


def test_eigenvalues_are_those_of_the_third_moment() -> None:
    activations = RNG.normal(size=(N, 3)) + PRESENCE[:, :3]
    axes = principal_axes(EMBEDDINGS, 5)
    found, _ = excess_eigenvalues(activations, EMBEDDINGS, n_axes=5)
    for unit in range(3):
        z = activations[:, unit] - activations[:, unit].mean()
        z = z / np.sqrt((z**2).mean())
        moment = sum(z[i] * np.outer(axes[i], axes[i]) for i in range(N)) / N
        np.testing.assert_allclose(found[unit], np.linalg.eigvalsh(moment), atol=1e-5)


def test_axes_are_uncorrelated_and_half_whitened() -> None:
    axes = principal_axes(EMBEDDINGS, 6)
    off = EMBEDDINGS - EMBEDDINGS.mean(0)
    spread = np.linalg.svd(off, compute_uv=False)[:6] / np.sqrt(N)
    np.testing.assert_allclose(axes.T @ axes / N, np.diag(spread / spread[0]), atol=1e-9)


def test_chance_and_constant_units_have_no_score() -> None:
    noise = np.random.default_rng(1).normal(size=(N, 40))
    found = excess_rank(noise, EMBEDDINGS)
    assert np.isnan(found).mean() > 0.7  # nine draws, the highest of which must be the unit's own
    assert np.isnan(excess_rank(np.full((N, 1), 3.0), EMBEDDINGS)).all()
    assert np.isnan(excess_rank(PRESENCE[:, :1], np.ones((N, 4)))).all()
    assert np.isnan(excess_rank(PRESENCE[:1, :2], EMBEDDINGS[:1])).all()


def test_each_tail_has_its_own_count() -> None:
    activations = (PRESENCE[:, :3].sum(1) - PRESENCE[:, 3])[:, None]
    assert excess_rank(activations, EMBEDDINGS)[0] == pytest.approx(3, rel=0.1)
    assert excess_rank(-activations, EMBEDDINGS)[0] == pytest.approx(1, rel=0.1)


def test_company_counts_for_less_than_a_concept() -> None:
    presence = PRESENCE.copy()
    presence[:, 1] = np.where(RNG.random(N) < 0.5, presence[:, 0], presence[:, 1])
    embeddings = presence @ RNG.normal(size=(8, 12)) + 0.05 * RNG.normal(size=(N, 12))
    assert excess_rank(presence[:, :1], embeddings)[0] < 1.6


@settings(deadline=None, max_examples=10)
@given(
    scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 99),
    dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_scale_offset_and_rotation_change_nothing(
    scale: float, shift: float, seed: int, dtype: type
) -> None:
    rng = np.random.default_rng(seed)
    activations = PRESENCE[:, :4] @ rng.uniform(0.5, 1, (4, 3)) + 0.1 * rng.normal(size=(N, 3))
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    moved = (scale * activations + shift).astype(dtype)
    np.testing.assert_allclose(
        excess_rank(moved, scale * EMBEDDINGS @ turn + shift),
        excess_rank(activations, EMBEDDINGS),
        rtol=0.02,
    )


def test_order_of_images_changes_no_more_than_the_null_does() -> None:
    activations = PRESENCE[:, :4] @ RNG.uniform(0.5, 1, (4, 5))
    order = RNG.permutation(N)
    one = excess_rank(activations, EMBEDDINGS)
    other = excess_rank(activations[order], EMBEDDINGS[order])
    np.testing.assert_allclose(one, other, rtol=0.05)


def test_duplicated_images_change_little() -> None:
    activations = PRESENCE[:, :4] @ RNG.uniform(0.5, 1, (4, 5))
    twice = excess_rank(np.tile(activations, (2, 1)), np.tile(EMBEDDINGS, (2, 1)))
    np.testing.assert_allclose(twice, excess_rank(activations, EMBEDDINGS), rtol=0.1)
