"""The B-cos set of layers: signed units without bias, options on every layer."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from polysem.errors import SpecError
from polysem.models.bcos import BcosConv2d, BcosLinear, LogitBias, explanation_mode
from polysem.models.twins import STANDARD, BcosMlp, bcos_layers
from polysem.models.vit import VisionTransformer


def test_the_perceptron_is_timm_s_with_b_cos_layers() -> None:
    torch.manual_seed(0)
    mlp = BcosMlp(5, 7, act_layer=nn.Identity, b=1.5, max_out=2).double()
    assert [(layer.b, layer.max_out) for layer in (mlp.fc1, mlp.fc2)] == [(1.5, 2)] * 2
    assert (mlp.fc1.out_features, mlp.fc2.out_features) == (7, 5)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    with explanation_mode(mlp):
        y = mlp(x)
    assert torch.equal(y, mlp.fc2(mlp.fc1(x)))
    (row,) = torch.autograd.grad(y[1, 2, 3], x)
    torch.testing.assert_close((row * x).sum(), y[1, 2, 3])
    assert BcosMlp(5, act_layer=nn.Identity).fc1.out_features == 5


def test_its_units_are_signed() -> None:
    hidden = BcosMlp(8, 64, act_layer=nn.Identity).fc1(torch.randn(5, 8))
    assert (hidden > 0).any() and (hidden < 0).any()


def test_biases_are_refused() -> None:
    with pytest.raises(SpecError, match="no biases"):
        BcosMlp(5, 7, bias=True)


def test_options_reach_every_layer() -> None:
    layers = bcos_layers(b=1.25, max_out=3)
    model = VisionTransformer(
        layers=layers,
        img_size=8,
        patch_size=4,
        in_chans=6,
        stem=(8, 16),
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
    )
    made = [m for m in model.modules() if isinstance(m, (BcosConv2d, BcosLinear))]
    assert len(made) == 2 + 1 + 2 * 3 + 1
    assert all((m.b, m.max_out) == (1.25, 3) for m in made)
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 2  # queries, keys, values
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Linear))
    assert not [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    assert sum(isinstance(m, LogitBias) for m in model.modules()) == 1


def test_both_sets_pickle_and_fill_every_part() -> None:
    for layers in (STANDARD, bcos_layers()):
        copy = pickle.loads(pickle.dumps(layers))
        assert [f.name for f in dataclasses.fields(copy) if getattr(copy, f.name) is None] == []
