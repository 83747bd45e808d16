"""Patches, stems and added positions against slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import BcosConv2d, BcosLinear
from polysem.models.embed import (
    PatchLinearEmbed,
    SincosPositions,
    conv_stem,
    sincos_positions,
)
from polysem.models.norms import GroupNorm1

LAYERS: dict[str, Callable[..., Any]] = {
    "linear": BcosLinear,
    "conv": BcosConv2d,
    "norm": GroupNorm1,
    "act": nn.Identity,
}


def draw(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_patches_are_flattened_row_by_row_with_channels_innermost() -> None:
    layers = {**LAYERS, "linear": partial(nn.Linear, bias=False)}
    embed = PatchLinearEmbed(img_size=(4, 9), patch_size=(2, 3), in_chans=5, embed_dim=7, **layers)
    images = draw(2, 5, 4, 9)
    tokens = embed(images)
    assert tokens.shape == (2, 6, 7) and embed.grid_size == (2, 3) and tokens.is_contiguous()
    for token in range(6):
        y, x = divmod(token, 3)
        patch = [
            images[1, channel, 2 * y + py, 3 * x + px].item()
            for py in range(2)
            for px in range(3)
            for channel in range(5)
        ]
        expected = embed.proj.linear.weight @ torch.tensor(patch)
        torch.testing.assert_close(tokens[1, token], expected)


def test_a_stem_halves_where_it_widens() -> None:
    stem = conv_stem(3, (8, 8, 4, 6), conv=nn.Conv2d, norm=nn.BatchNorm2d, act=nn.GELU)
    strides = [stage.conv.stride for stage in stem]
    assert strides == [(2, 2), (1, 1), (1, 1), (2, 2)]
    assert [name for name, _ in stem[0].named_children()] == ["conv", "norm", "act"]
    assert stem(draw(2, 3, 8, 12)).shape == (2, 6, 2, 3)


def test_a_stem_is_followed_by_one_linear_layer_a_pixel() -> None:
    embed = PatchLinearEmbed(
        img_size=8, patch_size=4, in_chans=6, embed_dim=7, stem=(8, 16), **LAYERS
    )
    images = draw(2, 6, 8, 8)
    pixels = embed.proj.stem(images).permute(0, 2, 3, 1)
    torch.testing.assert_close(embed(images), embed.proj.linear(pixels).flatten(1, 2))
    assert embed.num_patches == 4


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match="does not divide into patches"):
        PatchLinearEmbed(img_size=30, patch_size=4, **LAYERS)
    with pytest.raises(SpecError, match="shrinks images by 2, which must be the patch size"):
        PatchLinearEmbed(img_size=32, patch_size=4, in_chans=6, stem=(4, 16), **LAYERS)


def test_sincos_positions_equal_the_formula() -> None:
    positions = sincos_positions((3, 2), 12, device=torch.device("cpu"))
    assert positions.shape == (6, 12)
    for token in range(6):
        y, x = divmod(token, 2)
        omega = [10_000 ** (-i / 2) for i in range(3)]
        expected = [
            part(place * w) for place in (x, y) for part in (math.sin, math.cos) for w in omega
        ]
        torch.testing.assert_close(positions[token], torch.tensor(expected))
    tokens = draw(2, 6, 12).double()
    added = SincosPositions()(tokens, (3, 2))
    assert added.dtype == torch.float64
    torch.testing.assert_close(added, tokens + positions)


@pytest.mark.parametrize("width", [4, 10])
def test_sincos_positions_need_a_fitting_width(width: int) -> None:
    with pytest.raises(SpecError, match="need a width of 8"):
        sincos_positions((3, 2), width, device=torch.device("cpu"))
