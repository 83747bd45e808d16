"""The official package's explanations, in colour too, on weights shared with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from polysem import _torchvision
from polysem.explain.colour import colour
from polysem.explain.linear import bcos
from polysem.explain.target import Target
from polysem.models.bcos import add_inverse
from polysem.models.cnn import official_resnet
from polysem.models.official import official_vit

_torchvision.repair()
pytest.importorskip("bcos.models", reason="the official package is a development dependency")

from bcos.models import pretrained  # noqa: E402


@pytest.mark.parametrize(
    ("name", "size"),
    [("simple_vit_ti_patch16_224", 64), ("vitc_ti_patch1_14", 64), ("resnet18", 64)],
)
@pytest.mark.parametrize("smooth", [15, 1])
def test_maps_and_colours_are_theirs(name: str, size: int, smooth: int) -> None:
    torch.manual_seed(0)
    peer: Any = getattr(pretrained, name)(num_classes=10)
    for parameter in peer.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    peer = peer.eval()
    translate = official_resnet if name == "resnet18" else official_vit
    arch, model_args, state_dict = translate(name, peer.state_dict())
    ours = timm.create_model(arch, **model_args).eval()
    ours.load_state_dict(state_dict)

    x = add_inverse(torch.rand(1, 3, size, size))
    explained = peer.explain(x.clone().requires_grad_(), smooth=smooth, alpha_percentile=99.5)
    target = Target(explained["prediction"])
    maps = bcos(ours, x, target)
    expected = explained["contribution_map"]
    assert (maps - expected).abs().max() <= 1e-5
    assert (maps - expected).abs().max() <= 1e-3 * expected.abs().max()
    picture = colour(ours, x, target, smooth=smooth)[0].permute(1, 2, 0).numpy()
    difference = np.abs(picture - explained["explanation"])
    # where a weight is all but zero its colour is decided by the last bits, and alpha hides it
    seen = difference * picture[..., 3:]
    assert seen.max() <= 1e-3 and np.quantile(difference, 0.99) <= 1e-3
    assert difference[..., 3].max() <= 1e-4
