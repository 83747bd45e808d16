"""Layers between standard and B-cos: the trained layer at one end, the formula at the other."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import add_inverse, explanation_mode
from polysem.models.bcosified import (
    BcosifiedBatchNorm2d,
    BcosifiedConv2d,
    BcosifiedLayerNorm,
    BcosifiedLinear,
    BcosifiedLogitBias,
    BcosifiedPool,
    BcosifiedQkv,
    DetachableGate,
    InverseNorm,
)
from polysem.models.conversion import Conversion, advance

SHARES = [0.0, 0.3, 1.0]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def trained(layer: nn.Module) -> Any:
    """Give a layer weights and statistics that are all different from their start."""
    layer.double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(parameter + draw(*parameter.shape, seed=seed + 1))
        for name, buffer in layer.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(draw(*buffer.shape, seed=len(name)).abs() + 0.5)
    return layer.eval()


def slow_unit(x: list[float], w: list[float], bias: float, share: float, b: float) -> float:
    """(1 − s) (wᵀx + bias) + s wᵀx (|wᵀx| / ‖x‖)^(B−1)."""
    response = sum(a * c for a, c in zip(x, w, strict=True))
    ratio = abs(response) / math.sqrt(sum(a * a for a in x)) + (0 if b in (1, 2) else 1e-6)
    return (1 - share) * (response + bias) + share * response * ratio ** (b - 1)


@pytest.mark.parametrize("b", [1, 1.5, 2, 3])
@pytest.mark.parametrize("share", SHARES)
def test_linear_equals_the_formula(share: float, b: float) -> None:
    plain = trained(nn.Linear(5, 4))
    layer, x = BcosifiedLinear(plain, Conversion(share, b)), draw(2, 3, 5)
    y = layer(x)
    assert y.shape == (2, 3, 4)
    for image in range(2):
        for token in range(3):
            for unit in range(4):
                weights, bias = plain.weight[unit].tolist(), plain.bias[unit].item()
                expected = slow_unit(x[image, token].tolist(), weights, bias, share, b)
                assert y[image, token, unit].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 3)}, {"groups": 3}]
)
def test_a_convolution_is_the_linear_layer_on_every_patch(
    options: dict[str, Any], share: float
) -> None:
    plain, x = trained(nn.Conv2d(6, 9, (3, 2), **options)), draw(2, 6, 7, 8)
    conversion = Conversion(share)
    y = BcosifiedConv2d(plain, conversion)(x)
    unfold = {key: value for key, value in options.items() if key != "groups"}
    groups = options.get("groups", 1)
    for group, channels in enumerate(x.chunk(groups, 1)):
        patches = F.unfold(channels, (3, 2), **unfold).transpose(1, 2)
        units = slice(group * 9 // groups, (group + 1) * 9 // groups)
        dense = nn.Linear(patches.shape[2], 9 // groups)
        dense.weight = nn.Parameter(plain.weight[units].flatten(1))
        dense.bias = nn.Parameter(plain.bias[units])
        expected = BcosifiedLinear(dense, conversion)(patches).transpose(1, 2)
        # as in every B-cos convolution the squared norm of a patch has 1e-6 added
        torch.testing.assert_close(y[:, units].flatten(2), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [BcosifiedLinear, BcosifiedConv2d, BcosifiedQkv])
@pytest.mark.parametrize("bias", [True, False])
def test_at_share_0_it_is_the_layer_that_was_trained(kind: Any, bias: bool) -> None:
    if kind is BcosifiedConv2d:
        plain, x = trained(nn.Conv2d(3, 6, 3, padding=1, bias=bias)), draw(2, 3, 5, 7)
    else:
        plain, x = trained(nn.Linear(5, 6, bias=bias)), draw(2, 3, 5)
    layer = kind(plain, Conversion())
    assert torch.equal(layer(x), plain(x))
    assert [name for name, _ in layer.named_parameters()] == (
        ["weight", "bias"] if bias else ["weight"]
    )


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 10), st.sampled_from([1, 1.5, 2, 3]), st.integers(0, 99))
def test_laws_of_the_b_cos_end(scale: float, b: float, seed: int) -> None:
    plain, x = trained(nn.Linear(5, 4)), draw(3, 5, seed=seed)
    layer = BcosifiedLinear(plain, Conversion(1, b))
    y = layer(x)
    # the small number added to |cos| is felt by tiny responses only
    close = {"rtol": 1e-6, "atol": 0} if b in (1, 2) else {"rtol": 1e-2, "atol": 1e-5}
    torch.testing.assert_close(layer(scale * x), scale * y, **close)
    louder = copy.deepcopy(plain)
    louder.weight = nn.Parameter(plain.weight * scale)
    again = BcosifiedLinear(louder, Conversion(1, b))(x)
    torch.testing.assert_close(again, scale**b * y, **close)
    with explanation_mode(layer):
        x.requires_grad_()
        (row,) = torch.autograd.grad(layer(x)[0, 2], x)
    torch.testing.assert_close((row * x).sum(), y[0, 2])


@pytest.mark.parametrize("share", SHARES)
def test_values_lose_their_bias_queries_and_keys_do_not(share: float) -> None:
    plain, x = trained(nn.Linear(5, 12)), draw(2, 3, 5)
    y = BcosifiedQkv(plain, Conversion(share))(x)
    expected = plain(x)
    expected[..., 8:] -= share * plain.bias[8:]
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("explaining", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", SHARES)
def test_layer_norm_loses_its_bias(share: float, bias: bool, explaining: bool) -> None:
    plain, x = trained(nn.LayerNorm(5, eps=1e-3, bias=bias)), draw(2, 3, 5)
    layer = BcosifiedLayerNorm(plain, Conversion(share))
    layer.explaining = explaining
    expected = plain(x) - share * (plain.bias if bias else 0)
    torch.testing.assert_close(layer(x), expected)
    if explaining:
        x.requires_grad_()
        (row,) = torch.autograd.grad(layer(x)[1, 2, 3], x)
        added = (1 - share) * plain.bias[3] if bias else 0
        torch.testing.assert_close((row * x).sum() + added, expected[1, 2, 3])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_at_share_0_is_torchs(training: bool, momentum: float | None) -> None:
    plain = trained(nn.BatchNorm2d(3, eps=1e-3, momentum=momentum)).train(training)
    layer = BcosifiedBatchNorm2d(copy.deepcopy(plain), Conversion())
    for seed in range(3):
        x = draw(2, 3, 4, 5, seed=seed)
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_at_share_1_only_divides(training: bool) -> None:
    plain, x = trained(nn.BatchNorm2d(3)), draw(2, 3, 4, 5)
    layer = BcosifiedBatchNorm2d(plain, Conversion(1)).train(training)
    variance = x.var(dim=(0, 2, 3), correction=0) if training else plain.running_var.clone()
    expected = x * (plain.weight / (variance + plain.eps).sqrt())[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_pooling_goes_from_max_to_mean() -> None:
    plain, x = nn.MaxPool2d(3, 2, 1), draw(2, 3, 6, 7)
    conversion = Conversion()
    pool = BcosifiedPool(plain, conversion)
    mean = F.avg_pool2d(x, 3, 2, 1)
    assert torch.equal(pool(x), plain(x))
    conversion.share = 0.25
    torch.testing.assert_close(pool(x), 0.75 * plain(x) + 0.25 * mean)
    conversion.share = 1
    assert torch.equal(pool(x), mean)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, dilation=2), nn.MaxPool2d(2, ceil_mode=True)])
def test_pooling_without_an_average_is_refused(pool: nn.MaxPool2d) -> None:
    with pytest.raises(SpecError, match="no average"):
        BcosifiedPool(pool, Conversion())


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(inplace=True)])
def test_a_gate_is_a_constant_while_explaining(act: nn.Module) -> None:
    x = draw(3, 5)
    x[0, 0] = 0
    gate = DetachableGate(act)
    expected = act(x.clone())
    assert torch.equal(gate(x.clone()), expected)
    x.requires_grad_()
    with explanation_mode(gate):
        y = gate(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(slope * x, expected, rtol=1e-12, atol=0)


def test_normalisation_of_colours_is_linear_and_equals_the_usual_one() -> None:
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.3, 0.4)
    images = draw(2, 3, 4, 5).sigmoid()
    norm = InverseNorm(mean, std)
    columns = [torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std)]
    usual = (images - columns[0]) / columns[1]
    # of 1 − x the mean is 1 − μ and the deviation σ: its normalised value is −z
    inverse = ((1 - images) - (1 - columns[0])) / columns[1]
    torch.testing.assert_close(norm(add_inverse(images)), torch.cat([usual, inverse], 1))
    a, c = draw(2, 6, 4, 5), draw(2, 6, 4, 5, seed=1)
    torch.testing.assert_close(norm(2 * a - 3 * c), 2 * norm(a) - 3 * norm(c))
    assert not list(norm.state_dict())


def test_the_logit_bias_grows() -> None:
    conversion = Conversion()
    bias = BcosifiedLogitBias(5, conversion)
    assert bias.value == 0
    conversion.share = 0.5
    assert bias.value == pytest.approx(-math.log(4) / 2)
    torch.testing.assert_close(bias(torch.zeros(2)), torch.full((2,), -math.log(4) / 2))


def test_the_share_is_in_the_state_dict() -> None:
    a, c = Conversion(0.3), Conversion()
    c.load_state_dict(a.state_dict())
    assert c.share == 0.3


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(SpecError, match="from 0 to 1"):
        Conversion(share)


def test_an_exponent_below_1_is_refused() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        Conversion(b=0.5)


def test_the_share_grows_evenly_and_is_never_set_back() -> None:
    conversion = Conversion(0.25)
    model = nn.Sequential(conversion, nn.Linear(1, 1))
    seen = []
    for step in range(7):
        advance(model, step=step, steps=5)
        seen.append(conversion.share)
    assert seen == pytest.approx([0.25, 0.25, 0.4, 0.6, 0.8, 1, 1])
    conversion.share = 0
    advance(model, step=0, steps=0)
    assert conversion.share == 1
