"""Profiles, divergence and CKA against slow definitions."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from small_models import images_for, small_vit

from polysem.models.hooked import HookedVisionModel
from polysem.probe.gates import GatedViT, frozen
from polysem.probe.head_patterns import PROFILE, Looks, Moments, look, same_pixels

PREFIX = {"class_token": 1, "average_pooled": 0, "registers_layerscale_qknorm": 3, "bcos": 0}


def looks(name: str) -> tuple[Looks, list[np.ndarray]]:
    """Return what is measured, and the patterns [image, head, query, key] of each layer."""
    model = small_vit(name)
    images = images_for(model)
    pixels = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    pixels[:, :, :8, 16:] = 9  # patches 0, 1, 3, 4, 5 are the same, 2 is another
    with frozen(model):
        found = look(GatedViT(model), images, pixels)
    _, cache = HookedVisionModel(model).run_with_cache(images)
    return found, [cache["pattern", layer].detach().numpy() for layer in range(3)]


@pytest.mark.parametrize("name", PREFIX)
def test_the_profile_equals_its_definition(name: str) -> None:
    found, patterns = looks(name)
    prefix = PREFIX[name]
    assert found.profile.shape == (len(PROFILE), 2, 9)
    profile = dict(zip(PROFILE, found.profile.numpy(), strict=True))
    places = [(p // 3, p % 3) for p in range(6)]
    for image, head in ((0, 0), (1, 4), (0, 8)):
        pattern = patterns[head // 3][image, head % 3]
        entropy = np.mean([-(row * np.log(row)).sum() for row in pattern])
        inner = pattern[prefix:, prefix:]
        near = [
            sum(inner[i, j] for j in range(6) if i != j and _adjacent(places[i], places[j]))
            for i in range(6)
        ]
        same = [0, 1, 3, 4, 5]
        double = np.mean([sum(inner[i, j] for j in same if j != i) for i in same])
        expected = {
            "pattern_entropy": entropy,
            "class_share": pattern[prefix:, 0].mean() if prefix else np.nan,
            "self_share": inner.diagonal().mean(),
            "neighbour_share": np.mean(near),
            "previous_share": inner.diagonal(-1).mean(),
            "duplicate_share": double,
        }
        for measure, value in expected.items():
            assert profile[measure][image, head] == pytest.approx(value, rel=1e-5, nan_ok=True)
        own = pattern[0, prefix:] if prefix else inner.mean(0)
        np.testing.assert_allclose(found.maps[image, head], own, rtol=1e-6)


def _adjacent(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) == 1


def test_divergence_is_jensen_shannons() -> None:
    found, patterns = looks("class_token")  # 7 queries: all are compared
    for image, i, j in ((0, 0, 1), (1, 2, 7)):
        one, other = patterns[i // 3][image, i % 3], patterns[j // 3][image, j % 3]
        expected = np.mean(jensenshannon(one, other, base=2, axis=1) ** 2)
        assert found.divergence[image, i, j].item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(found.divergence, found.divergence.mT)
    assert found.divergence.min() >= 0 and found.divergence.max() <= 1


def test_cka_is_streamed_and_does_not_see_rotations() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    outputs = np.concatenate(
        [x, x @ turned * 5 + 2, rng.normal(size=(50, 3)), np.zeros((50, 3))], 1
    )

    def moments(z: np.ndarray) -> Moments:
        given = torch.from_numpy(z)
        return Moments(len(z), given.sum(0), given.T @ given)

    found = (moments(outputs[:20]) + moments(outputs[20:])).cka(4).numpy()
    assert found[0, 1] == pytest.approx(1)
    a, b = x - x.mean(0), outputs[:, 6:9] - outputs[:, 6:9].mean(0)
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    assert found[0, 2] == pytest.approx(np.linalg.norm(b.T @ a) ** 2 / norms)
    assert np.isnan(found[3]).all()  # a head that says nothing is like no other


def test_patches_that_do_not_divide_the_image_have_no_doubles() -> None:
    assert not same_pixels(torch.zeros(1, 3, 7, 7, dtype=torch.uint8), (2, 2)).any()
    assert same_pixels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (2, 2)).sum() == 12


def test_sums_add_up_over_batches() -> None:
    found, patterns = looks("average_pooled")
    np.testing.assert_allclose(found.pattern_sum[4], patterns[1][:, 1].sum(0), rtol=1e-6)
    assert found.moments.count == 2 * 6
