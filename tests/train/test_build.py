from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polysem.errors import RecipeError
from polysem.train.build import (
    build_model,
    choose_average,
    choose_clip,
    choose_loss,
    choose_memory_format,
    choose_optimiser,
)
from polysem.train.losses import bce, cross_entropy
from polysem.train.recipe import Clip, Model, Optimiser, Recipe, parse_recipe

TWINS = ("vit_micro_patch8_gap_64", "bcos_vit_micro_patch8_64")
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def _model(name: str) -> nn.Module:
    return build_model(Model(name=name, args=SMALL), n_classes=5)


def _recipe(loss: str) -> Recipe:
    return parse_recipe(
        {
            "model": {"name": TWINS[0]},
            "data": {"train": "shapes", "test": "shapes:test"},
            "optimiser": {"lr": 1},
            "schedule": {"steps": 1},
            "loss": loss,
        }
    )


def _groups(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, dict[str, object]]:
    home = {
        id(parameter): group for group in optimiser.param_groups for parameter in group["params"]
    }
    return {name: home[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("optimiser", ["adamw", "adam", "muon"])
def test_vectors_and_positions_are_not_decayed(name: str, optimiser: str) -> None:
    model = _model(name)
    chosen = Optimiser.model_validate({"name": optimiser, "lr": 0.1, "weight_decay": 0.3})
    groups = _groups(model, choose_optimiser(chosen, model))
    assert len(groups) == len(list(model.parameters()))
    for key, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or "position_bias" in key
        assert groups[key]["weight_decay"] == (0.0 if spared else 0.3), key


@pytest.mark.parametrize("name", TWINS)
def test_muon_changes_the_inner_matrices_only(name: str) -> None:
    model = _model(name)
    optimiser = choose_optimiser(Optimiser(name="muon", lr=0.1), model)
    model(torch.rand(2, 6 if name.startswith("bcos") else 3, 64, 64)).square().sum().backward()
    optimiser.step()
    for key, parameter in model.named_parameters():
        inner = key.startswith("blocks.") and parameter.ndim == 2
        assert ("momentum_buffer" in optimiser.state[parameter]) is inner, key
        assert ("exp_avg" in optimiser.state[parameter]) is not inner, key


@given(seed=st.integers(0, 99), decay=st.floats(0, 0.3))
def test_lion_steps_by_the_sign(seed: int, decay: float) -> None:
    """c = β₁m + (1 − β₁)g; θ ← θ − η(sign c + λθ); m ← β₂m + (1 − β₂)g (arXiv 2302.06675)."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(5, 3, bias=False)
    given_ = Optimiser.model_validate({"name": "lion", "lr": 0.01, "weight_decay": decay})
    optimiser = choose_optimiser(given_, layer)
    theta = layer.weight.detach().double()
    m = torch.zeros_like(theta)
    for step in range(3):
        g = torch.randn(3, 5, generator=generator)
        layer.weight.grad = g.clone()
        before = layer.weight.detach().clone()
        optimiser.step()
        c = 0.9 * m + 0.1 * g.double()
        theta = theta - 0.01 * (c.sign() + decay * theta)
        m = 0.99 * m + 0.01 * g.double()
        assert torch.allclose(layer.weight.double(), theta, atol=1e-6)
        if not decay:
            moved = layer.weight.detach() - before
            assert torch.allclose(moved.abs(), torch.full_like(moved, 0.01), atol=1e-6)
            if step == 0:
                assert torch.equal(moved.sign(), -g.sign())


def test_the_average_is_an_average_of_the_weights() -> None:
    model = nn.Linear(4, 3).double()
    average = choose_average(_recipe("auto").model_copy(update={"ema": 0.7}), model)
    assert average is not None
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(12):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        average.update(model, step=step)
        decay = average.get_decay(step)
        assert 0 <= decay <= 0.7
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
            assert torch.allclose(average.module.state_dict()[name], expected[name])
    assert decay == 0.7  # reached once the climb is over
    assert choose_average(_recipe("auto"), model) is None


def test_only_networks_of_convolutions_on_a_gpu_take_channels_last() -> None:
    cnn = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64, 2))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_memory_format(cnn, gpu) == torch.channels_last
    assert choose_memory_format(cnn, cpu) == torch.contiguous_format
    for name in TWINS:
        assert choose_memory_format(_model(name), gpu) == torch.contiguous_format


def test_auto_is_the_loss_that_fits_the_model() -> None:
    standard, bcos = (_model(name) for name in TWINS)
    assert choose_loss(_recipe("auto"), standard) is cross_entropy
    assert choose_loss(_recipe("auto"), bcos) is bce
    assert choose_loss(_recipe("bce"), standard) is bce
    assert choose_loss(_recipe("cross_entropy"), bcos) is cross_entropy


def _clipped(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    layer = nn.Linear(3, 2, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    layer.weight.grad = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.01, 0.0]])
    choose_clip(clip, layer)()
    return layer.weight.detach(), layer.weight.grad


def test_clipping() -> None:
    _, gradient = _clipped(Clip())
    assert gradient[0].tolist() == [3.0, 0.0, 4.0]
    _, gradient = _clipped(Clip(norm=0.5))
    assert float(gradient.norm()) == pytest.approx(0.5, rel=1e-5)
    weight, gradient = _clipped(Clip(agc=0.1))
    assert float(gradient[0].norm()) == pytest.approx(0.1 * float(weight[0].norm()))
    assert gradient[1].tolist() == pytest.approx([0.0, 0.01, 0.0])


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("vit_micro_patch8_gap_46", {}, "did you mean 'vit_micro_patch8_gap_64'"),
        (TWINS[0], {"embed_dims": 3}, "embed_dims"),
        (TWINS[0], {"num_classes": 3}, "the data decides"),
        (TWINS[0], {"pretrained": True}, "weights come from model"),
        (TWINS[0], {"checkpoint_path": "x.pth"}, "weights come from model"),
    ],
)
def test_a_model_that_cannot_be_built(name: str, args: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build_model(Model(name=name, args=args), n_classes=5)
