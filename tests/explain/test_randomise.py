"""Layers drawn anew: none is forgotten, nothing else changes, none gets its start back."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from small_models import CNNS, VITS, images_for, small_cnn, small_vit
from torch import nn

from polysem.errors import SpecError
from polysem.explain.randomise import Randomised, layers_of

BUILDS: dict[str, Any] = {**VITS, **CNNS}


def trained(name: str) -> Any:
    make = small_vit if name in VITS else small_cnn
    return make(name, dtype=torch.float32)


@pytest.mark.parametrize("by", ["block", "module"])
@pytest.mark.parametrize("name", BUILDS)
def test_every_tensor_is_in_one_layer(name: str, by: Any) -> None:
    model = trained(name)
    names = [n for names in layers_of(model, by=by).values() for n in names]
    assert sorted(names) == sorted(model.state_dict())


def test_bare_parameters_are_at_the_input_or_in_their_block() -> None:
    layers = layers_of(trained("registers_layerscale_qknorm"))
    assert list(layers)[:3] == ["cls_token", "reg_token", "pos_embed"]
    assert "blocks.1.ls1.gamma" in layers["blocks.1"]
    layers = layers_of(trained("bcos"))
    assert "blocks.2.attn.position_bias.table" in layers["blocks.2"]
    assert list(layers) == [
        "patch_embed.proj.linear", "blocks.0", "blocks.1", "blocks.2", "fc_norm", "head.linear"
    ]  # fmt: skip
    layers = layers_of(trained("resnet18"))
    assert list(layers)[:3] == ["conv1", "bn1", "layer1.0"]
    assert "layer2.0.downsample.1.running_var" in layers["layer2.0"]
    by_module = layers_of(trained("bcos"), by="module")
    assert by_module["blocks.0.attn.position_bias"] == ("blocks.0.attn.position_bias.table",)
    assert list(layers_of(timm.create_model("convnext_atto")))[2:4] == [
        "stages.0.blocks.0", "stages.0.blocks.1"
    ]  # fmt: skip


@pytest.mark.parametrize("name", BUILDS)
def test_the_order_is_that_of_computing(name: str) -> None:
    model = trained(name)
    layers = layers_of(model)
    seen: list[str] = []
    for module_name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=module_name: seen.append(name))
    model(images_for(model))

    def last_call(layer: str) -> int:
        calls = [i for i, name in enumerate(seen) if f"{name}.".startswith(f"{layer}.")]
        return max(calls, default=-1)

    calls = [last_call(layer) for layer in layers]
    assert calls == sorted(calls)


@pytest.mark.parametrize("name", BUILDS)
def test_drawn_and_put_back(name: str) -> None:
    model = trained(name)
    images = images_for(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    drawn = Randomised(model, BUILDS[name], images)
    logits = model(images)
    assert torch.equal(drawn.with_layers([])(images), logits)
    all_new = drawn.with_layers(list(drawn.layers))
    assert all_new is not model
    for key, value in all_new.state_dict().items():
        never_moves = key.endswith(("num_batches_tracked", "running_mean"))
        assert never_moves or not torch.equal(value, before[key]), key
    assert not torch.allclose(all_new(images), logits)
    assert not any(module.training for module in all_new.modules())
    assert torch.equal(drawn.with_layers([])(images), logits)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_layer_changes_alone_and_is_the_same_beside_others() -> None:
    model = trained("bcos")
    drawn = Randomised(model, BUILDS["bcos"], images_for(model))
    alone = {k: v.clone() for k, v in drawn.with_layers(["blocks.1"]).state_dict().items()}
    for key, value in model.state_dict().items():
        assert torch.equal(alone[key], value) == (not key.startswith("blocks.1.")), key
    both = drawn.with_layers(["blocks.1", "blocks.2"]).state_dict()
    for key, value in both.items():
        if key.startswith("blocks.1."):
            assert torch.equal(value, alone[key])
            if value.ndim > 1:  # norms begin as ones
                assert not torch.equal(value, both[key.replace("blocks.1.", "blocks.2.")]), key


def test_seeds_differ_and_none_gives_back_where_training_began() -> None:
    torch.manual_seed(0)
    model = BUILDS["standard"]().eval()  # as a training with seed 0 begins
    images = images_for(model)
    weights = []
    for seed in (0, 0, 1):
        drawn = Randomised(model, BUILDS["standard"], images, seed=seed)
        weights.append(drawn.with_layers(["blocks.0"]).blocks[0].mlp.fc1.weight.clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], model.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("name", CNNS)
def test_statistics_are_those_of_the_images(name: str) -> None:
    model = trained(name)
    images = images_for(model)
    drawn = Randomised(model, BUILDS[name], images)
    kept = model.layer2[0].bn1.running_var.clone()
    new = drawn.with_layers(["conv1", "bn1"])
    with torch.no_grad():
        signal = new.conv1(images)
    torch.testing.assert_close(
        new.bn1.running_var, signal.var((0, 2, 3), correction=int(name == "resnet18"))
    )
    assert torch.equal(new.layer2[0].bn1.running_var, kept)
    assert new.bn1.momentum == model.bn1.momentum


def test_a_deep_network_drawn_anew_still_has_a_signal() -> None:
    model = timm.create_model("bcos_resnet56_32").eval()
    images = images_for(model)
    drawn = Randomised(model, partial(timm.create_model, "bcos_resnet56_32"), images)
    logits = drawn.with_layers(list(drawn.layers))(images) - model.logit_bias.value
    assert logits.abs().min() > 1e-6


def test_another_architecture_is_refused() -> None:
    model = trained("standard")
    with pytest.raises(SpecError, match=r"no tensor like 'blocks\.0"):
        Randomised(model, partial(VITS["standard"], mlp_ratio=3.0), images_for(model))


def test_a_plain_network_has_layers_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 4))
    assert list(layers_of(model)) == ["0", "3"]
