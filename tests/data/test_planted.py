import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.data.planted import UNRELATED, co_occurring, plant
from polysem.data.shapes import Shapes
from polysem.errors import DataError

PRESENCE = np.random.default_rng(0).random((500, 9)) < 0.2


def test_a_unit_without_noise_is_the_weighted_sum_of_its_concepts() -> None:
    units = plant(PRESENCE, noise=0, per_count=2, seed=1)
    np.testing.assert_array_equal(units.n_concepts, np.repeat(np.arange(1, 7), 2))
    for unit, weights in enumerate(units.weights):
        expected = sum(w * PRESENCE[:, c] for c, w in enumerate(weights))
        np.testing.assert_allclose(units.activations[:, unit], expected, atol=1e-12)
        assert ((weights == 0) | ((weights >= 0.5) & (weights <= 1))).all()


@settings(deadline=None, max_examples=20)
@given(noise=st.floats(0, 4), seed=st.integers(0, 99), signed=st.booleans())
def test_noise_has_the_stated_size_and_changes_no_unit(
    noise: float, seed: int, signed: bool
) -> None:
    clean = plant(PRESENCE, noise=0, per_count=1, counts=(1, 3), signed=signed, seed=seed)
    noisy = plant(PRESENCE, noise=noise, per_count=1, counts=(1, 3), signed=signed, seed=seed)
    np.testing.assert_array_equal(clean.weights, noisy.weights)
    np.testing.assert_array_equal(clean.n_concepts, [1, 3])
    assert ((clean.weights < 0).sum(1) > 0).all() == signed
    added = (noisy.activations - clean.activations).std(0)
    np.testing.assert_allclose(added, noise * clean.activations.std(0), rtol=0.2, atol=1e-12)


def test_concepts_of_a_unit_are_allowed_and_unrelated() -> None:
    presence = PRESENCE.copy()
    presence[:, 4] = presence[:, 5]
    correlation = np.corrcoef(presence.T)
    for weights in plant(presence, noise=0, counts=(2, 3), among=range(3, 9)).weights:
        chosen = np.flatnonzero(weights)
        assert set(chosen) <= set(range(3, 9))
        between = np.abs(correlation[np.ix_(chosen, chosen)])[np.triu_indices(len(chosen), 1)]
        assert (between < UNRELATED).all()


def test_too_few_unrelated_concepts_are_named() -> None:
    with pytest.raises(DataError, match="no 3 of 2 concepts are unrelated"):
        plant(PRESENCE, noise=0, counts=(3,), among=[0, 1])
    constant = np.ones((50, 4), dtype=bool)
    with pytest.raises(DataError, match="unrelated"):
        plant(constant, noise=0, counts=(2,))


def test_company_raises_the_correlation_of_its_pairs_only() -> None:
    data = Shapes("test", n=6000)
    chosen = co_occurring(data, 1500, company={"red": "star"}, strength=0.9)
    assert len(chosen) == 1500
    assert chosen.concepts == data.concepts
    names = list(data.concepts)
    red, star, blue = (names.index(name) for name in ("red", "star", "blue"))
    before, after = (np.corrcoef(d.concept_matrix().T.astype(float)) for d in (data, chosen))
    assert after[red, star] > before[red, star] + 0.3
    assert abs(after[blue, star] - before[blue, star]) < 0.1
    shown = [data.concepts[c] for c in np.flatnonzero(chosen.concept_matrix()[7])]
    assert chosen.whole.scene(int(chosen.indices[7])).things[0].shape in shown


def test_what_company_cannot_have_is_said() -> None:
    data = Shapes("test", n=50)
    with pytest.raises(DataError, match=r"no concept 'starr'.*'star'"):
        co_occurring(data, 10, company={"red": "starr"})
    with pytest.raises(DataError, match=r"images of shapes:test.* may stay, not the 50 asked for"):
        co_occurring(data, 50, strength=1)
