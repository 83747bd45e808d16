"""Colours of W(x): the formula pixel by pixel, and what must vanish."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import images_for, small_cnn, small_vit

from polysem.errors import SpecError
from polysem.explain.colour import colour, colour_image, on_ground
from polysem.explain.linear import linear_map
from polysem.explain.target import Target
from polysem.models.bcos import add_inverse


def test_the_formula_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    images = add_inverse(torch.rand(2, 3, 5, 7, dtype=torch.float64, generator=generator))
    weights = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=generator)
    found = colour_image(images, weights, smooth=3, percentile=90).numpy()
    for i in range(2):
        alpha = np.zeros((5, 7))
        for y in range(5):
            for x in range(7):
                w = weights[i, :, y, x].numpy()
                g = np.maximum(w / np.abs(w).max(), 0)
                for c in range(3):
                    total = g[c] + g[c + 3]
                    expected = g[c] / total if total else 0.0
                    assert found[i, c, y, x] == pytest.approx(expected, abs=1e-9)
                if images[i, :, y, x].numpy() @ w >= 0:
                    alpha[y, x] = np.sqrt((w**2).sum())
        padded = np.pad(alpha, 1)
        smooth = np.array(
            [[padded[y : y + 3, x : x + 3].mean() for x in range(7)] for y in range(5)]
        )
        expected = np.clip(smooth / np.quantile(smooth, 0.9), 0, 1)
        np.testing.assert_allclose(found[i, 3], expected, atol=1e-9)


def test_pixels_that_contribute_little_or_against_vanish() -> None:
    images = add_inverse(torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64))
    weights = torch.ones(1, 6, 4, 4, dtype=torch.float64)
    weights[0, :, 1, 1] = -5
    weights[0, :, 2, 2] = 1e-6
    alpha = colour_image(images, weights, smooth=0)[0, 3]
    assert alpha[1, 1] < 1e-9 and alpha[2, 2] < 1e-5 and alpha[0, 0] == 1


def test_a_red_weight_is_red_and_a_dark_one_black() -> None:
    images = add_inverse(torch.full((1, 3, 1, 2), 0.5))
    weights = torch.zeros(1, 6, 1, 2)
    weights[0, [0, 4, 5], 0, 0] = 1.0  # bright in red, dark in green and blue
    weights[0, 3:, 0, 1] = 1.0
    rgba = colour_image(images, weights, smooth=0)
    assert rgba[0, :3, 0, 0].round().tolist() == [1, 0, 0]
    assert rgba[0, :3, 0, 1].round().tolist() == [0, 0, 0]
    white, black = on_ground(rgba, "white"), on_ground(rgba, "black")
    assert white.shape == (1, 3, 1, 2) and on_ground(rgba, "transparent") is rgba
    clear = rgba.clone()
    clear[:, 3] = 0
    assert on_ground(clear, "white").min() == 1 and on_ground(clear, "black").max() == 0
    assert torch.allclose(white, black + 1 - rgba[:, 3:])


@pytest.mark.parametrize(
    "target",
    [
        Target(2),
        Target(9, "blocks.1.mlp.hook_post", tail="lower"),
        Target(1, "blocks.0.attn.hook_z"),
    ],
)
def test_classes_neurons_and_heads_have_colours(target: Target) -> None:
    model = small_vit("bcos")
    x = images_for(model)
    rgba = colour(model, x, target, smooth=0)
    assert rgba.shape == (2, 4, 16, 24) and rgba.min() >= 0 and rgba.max() <= 1
    found = linear_map(model, x, [target])
    assert torch.equal(rgba, colour_image(x, found.weights[0], smooth=0))
    # the window follows the size of the image: 15 px of 224, 1 px of 16
    assert torch.equal(colour(model, x, target), rgba)


def test_bad_options_get_a_sentence() -> None:
    six = torch.rand(1, 6, 4, 4)
    for options, message in (
        ({"smooth": 4}, "odd, not 4"),
        ({"smooth": -1}, "odd, not -1"),
        ({"percentile": 0}, "percentile must be above 0"),
    ):
        with pytest.raises(SpecError, match=message):
            colour_image(six, six, **options)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="six channels"):
        colour_image(six[:, :3], six[:, :3])
    with pytest.raises(SpecError, match="the ground is"):
        on_ground(six[:, :4], "blue")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="no B-cos layers"):
        colour(small_cnn("resnet18"), torch.rand(1, 3, 32, 32).double(), Target(0))


def test_a_silent_explanation_is_clear() -> None:
    zeros = torch.zeros(1, 6, 3, 3)
    assert colour_image(zeros, zeros).isfinite().all()
