"""The layer that suits model and target."""

from __future__ import annotations

import pytest
import torch
from small_models import small_cnn, small_vit
from torch import nn

from polysem.errors import SpecError
from polysem.explain.cam_layer import cam_layer
from polysem.explain.target import Target

NORMED = "blocks.{}.ln1.hook_normalized"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("class_token", NORMED.format(2)),
        ("average_pooled", "blocks.2.hook_resid_post"),
        ("bcos", "blocks.2.hook_resid_post"),
        ("post_norm", "blocks.2.hook_resid_pre"),
    ],
)
def test_of_classes(name: str, layer: str) -> None:
    assert cam_layer(small_vit(name), Target(0)) == layer
    assert cam_layer(small_vit(name), torch.tensor([0])) == layer
    assert cam_layer(small_vit(name), Target(0, "hook_pooled")) == layer


def test_of_an_average_after_the_norm() -> None:
    model = small_vit("class_token", class_token=False, global_pool="avg", fc_norm=False)
    assert cam_layer(model, Target(0)) == "ln_final.hook_normalized"


@pytest.mark.parametrize(
    ("site", "layer"),
    [
        ("blocks.1.mlp.hook_post", NORMED.format(1)),
        ("blocks.1.attn.hook_z", NORMED.format(1)),
        ("blocks.1.hook_resid_post", NORMED.format(1)),
        ("blocks.1.hook_resid_pre", NORMED.format(0)),
        ("blocks.1.ln1.hook_normalized", NORMED.format(0)),
    ],
)
def test_of_units_of_a_block(site: str, layer: str) -> None:
    assert cam_layer(small_vit("bcos"), Target(0, site)) == layer


def test_of_a_cnn() -> None:
    model = small_cnn("resnet18")
    assert cam_layer(model, Target(0)) == "layer4.1.hook_post"
    assert cam_layer(model, Target(0, "layer3.0.hook_post")) == "layer2.1.hook_post"


def test_where_there_is_none() -> None:
    for model, target in (
        (small_cnn("resnet18"), Target(0, "layer1.0.hook_post")),
        (small_vit("bcos"), Target(0, "blocks.0.hook_resid_pre")),
        (small_vit("bcos"), Target(0, "hook_embed")),
    ):
        with pytest.raises(SpecError, match="no layer of maps comes before"):
            cam_layer(model, target)
    with pytest.raises(SpecError, match="none that polysem knows"):
        cam_layer(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), Target(0))
