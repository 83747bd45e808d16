"""B-cos layers against slow references from the formula, and the laws that the paper promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import (
    BcosConv2d,
    BcosLinear,
    DetachableIdentity,
    LogitBias,
    add_inverse,
    explanation_mode,
    logit_bias,
)

SEEDS = st.integers(0, 2**32 - 1)
EXPONENTS = st.sampled_from([1, 1.25, 2, 2.5, 4])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def exact(make: Callable[..., nn.Module], *sizes: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return make(*sizes, dtype=torch.float64, **options)


def slow_unit(x: Tensor, candidates: Tensor, b: float, *, floor: float = 0.0) -> float:
    """‖x‖ · sign(c) · |c|^B of the candidate with the largest ŵᵀx.

    `floor` is added to ‖x‖², and 1e-6 to the |c| that is raised to another power than 0 or 1.
    """
    norm = math.sqrt(sum(value**2 for value in x.tolist()) + floor)
    responses = []
    for row in candidates.tolist():
        length = math.sqrt(sum(weight**2 for weight in row))
        responses.append(sum(w / length * v for w, v in zip(row, x.tolist(), strict=True)))
    cosine = max(responses) / norm
    return norm * cosine * (abs(cosine) + (0 if b in (1, 2) else 1e-6)) ** (b - 1)


@pytest.mark.parametrize("max_out", [1, 3])
@pytest.mark.parametrize("b", [1, 1.5, 2, 3])
def test_linear_equals_the_formula(b: float, max_out: int) -> None:
    layer = exact(BcosLinear, 5, 4, b=b, max_out=max_out)
    x = draw(2, 3, 5)
    y = layer(x)
    assert y.shape == (2, 3, 4)
    for image in range(2):
        for token in range(3):
            for unit in range(4):
                rows = layer.weight[unit * max_out : (unit + 1) * max_out]
                expected = slow_unit(x[image, token], rows, b)
                assert y[image, token, unit].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (2, 1), "padding": (1, 0)},
        {"dilation": (1, 2), "padding": 1},
        {"groups": 2, "stride": 2},
        {"groups": 2, "dilation": 2, "padding": (2, 3), "max_out": 3},
        {"max_out": 2, "padding": 1},
        {"b": 1},
        {"b": 1.5, "groups": 2},
    ],
    ids=str,
)
def test_convolution_equals_the_formula_on_every_patch(options: dict[str, float]) -> None:
    options = {"b": 2, "max_out": 1, "groups": 1, **options}
    layer = exact(BcosConv2d, 6, 4, (2, 3), **options)
    x = draw(2, 6, 7, 8)
    y = layer(x)
    geometry = {key: options[key] for key in ("stride", "padding", "dilation") if key in options}
    groups, max_out = options["groups"], options["max_out"]
    for group in range(groups):
        channels = x[:, group * 6 // groups : (group + 1) * 6 // groups]
        patches = F.unfold(channels, (2, 3), **geometry)  # [image, pixel, place]
        for unit in range(group * 4 // groups, (group + 1) * 4 // groups):
            rows = layer.weight[unit * max_out : (unit + 1) * max_out].flatten(1)
            for place in range(0, patches.shape[2], 5):
                expected = slow_unit(patches[1, :, place], rows, options["b"], floor=1e-6)
                actual = y[1, unit].flatten()[place].item()
                assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert y[0, 0].numel() == patches.shape[2]


def test_a_convolution_of_whole_patches_is_a_linear_layer() -> None:
    conv = exact(BcosConv2d, 3, 4, (2, 5), stride=(2, 5))
    linear = exact(BcosLinear, 30, 4)
    linear.weight.data = conv.weight.data.flatten(1)
    x = draw(2, 3, 4, 5)
    patches = F.unfold(x, (2, 5), stride=(2, 5)).transpose(1, 2)
    torch.testing.assert_close(
        conv(x).flatten(2).transpose(1, 2), linear(patches), rtol=1e-6, atol=1e-9
    )


@given(seed=SEEDS, b=EXPONENTS, factor=st.floats(1e-3, 1e3))
@settings(deadline=None)  # a busy machine is no failure
def test_the_scale_of_weights_does_not_matter(seed: int, b: float, factor: float) -> None:
    layer, x = exact(BcosLinear, 5, 3, b=b), draw(4, 5, seed=seed)
    before = layer(x)
    layer.weight.data[1] *= factor
    torch.testing.assert_close(layer(x), before)


@given(seed=SEEDS, b=EXPONENTS, factor=st.floats(1e-3, 1e3))
@settings(deadline=None)  # a busy machine is no failure
def test_a_scaled_input_scales_the_output(seed: int, b: float, factor: float) -> None:
    layer, x = exact(BcosLinear, 5, 3, b=b), draw(4, 5, seed=seed)
    torch.testing.assert_close(layer(factor * x), factor * layer(x), rtol=1e-7, atol=1e-9)


@given(seed=SEEDS, b=EXPONENTS, max_out=st.sampled_from([1, 2]))
@settings(deadline=None)  # a busy machine is no failure
def test_no_unit_exceeds_the_norm_of_its_input(seed: int, b: float, max_out: int) -> None:
    layer = exact(BcosLinear, 5, 3, b=b, max_out=max_out)
    x = draw(4, 5, seed=seed)
    assert (layer(x).abs() <= x.norm(dim=-1, keepdim=True) * (1 + 1e-5)).all()
    aligned = layer.weight[:max_out].detach()[:1] * 7
    top = layer(aligned)[0, 0].item()
    assert top == pytest.approx(aligned.norm().item(), rel=1e-5)  # reached where they align


def test_with_b_1_a_layer_is_linear_with_weights_of_unit_norm() -> None:
    layer, x = exact(BcosLinear, 5, 3, b=1), draw(4, 5)
    torch.testing.assert_close(layer.unit_weight().norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(layer(x), x @ layer.unit_weight().T)
    conv, images = exact(BcosConv2d, 3, 4, 2, b=1), draw(2, 3, 5, 6)
    torch.testing.assert_close(conv(images), F.conv2d(images, conv.unit_weight()))


@pytest.mark.parametrize("b", [1, 1.5, 2])
@pytest.mark.parametrize("max_out", [1, 2])
def test_explanations_are_complete_and_leave_values_alone(b: float, max_out: int) -> None:
    options = {"b": b, "max_out": max_out, "dtype": torch.float64}
    cases = [
        (BcosLinear(5, 3, **options), draw(2, 4, 5)),
        (BcosConv2d(6, 4, 3, padding=1, stride=2, groups=2, **options), draw(2, 6, 5, 7)),
    ]
    for layer, x in cases:
        outside = layer(x)
        x.requires_grad_()
        with explanation_mode(layer):
            inside = layer(x)
        assert torch.equal(inside, outside)
        for index in ((0, 0, 0), (1, 2, 1)):
            (row,) = torch.autograd.grad(inside[index].sum(), x, retain_graph=True)
            torch.testing.assert_close((row * x).sum(), inside[index].sum())


def test_outside_of_explanation_mode_the_factor_is_differentiated() -> None:
    layer, x = exact(BcosLinear, 5, 3), draw(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    with explanation_mode(layer):
        (inside,) = torch.autograd.grad(layer(x).sum(), x)
    (outside,) = torch.autograd.grad(layer(x).sum(), x)
    assert (inside - outside).abs().max() > 1e-2


def test_w_of_a_linear_layer_is_its_unit_weights_times_the_cosines() -> None:
    layer, x = exact(BcosLinear, 5, 3), draw(5)
    unit = layer.unit_weight()
    cosine = (unit @ x / x.norm()).abs()
    with explanation_mode(layer):
        w = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(w, cosine[:, None] * unit)


def test_explanation_mode_nests_and_restores_after_an_error() -> None:
    model = nn.Sequential(BcosLinear(3, 2), nn.ReLU(), BcosLinear(2, 2), DetachableIdentity())
    model[2].explaining = True
    with explanation_mode(model) as same:
        assert same is model
        with pytest.raises(ZeroDivisionError), explanation_mode(model[0]):
            assert model[0].explaining
            raise ZeroDivisionError
        assert [model[i].explaining for i in (0, 2, 3)] == [True, True, True]
    assert [model[i].explaining for i in (0, 2, 3)] == [False, True, False]
    assert not hasattr(model[1], "explaining")
    assert not BcosLinear.explaining


@pytest.mark.parametrize("b", [1.5, 2])
def test_half_precision_neither_overflows_nor_goes_astray(b: float) -> None:
    linear, x = BcosLinear(64, 3, b=b), 300 * draw(2, 64).float()
    conv, images = BcosConv2d(16, 3, 3, b=b, padding=1), 300 * draw(2, 16, 5, 6).float()
    for layer, inputs in ((linear, x), (conv, images)):
        exact = layer(inputs)
        half = layer.bfloat16()(inputs.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=10)
        layer.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = layer(inputs)
        torch.testing.assert_close(mixed.float(), exact, rtol=0.1, atol=10)


def test_norms_stay_in_float32_under_autocast() -> None:
    layer, x = BcosConv2d(2, 3, 3, dilation=2), torch.rand(1, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.patch_norm(x), layer.patch_norm(x).float())
        mixed = layer.patch_norm(x)
    assert torch.equal(mixed, layer.patch_norm(x))


def test_units_and_inputs_of_zeros_are_silent() -> None:
    layer = BcosLinear(5, 3)
    layer.weight.data[1] = 0
    x = torch.zeros(2, 5)
    x[0] = torch.rand(5)
    x.requires_grad_()
    y = layer(x)
    assert not y[1].any() and not y[:, 1].any() and y[0, 0] != 0
    y.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert layer.weight.grad is not None and torch.isfinite(layer.weight.grad[[0, 2]]).all()


def test_impossible_layers_are_refused() -> None:
    with pytest.raises(SpecError, match="B of a B-cos layer must be at least 1"):
        BcosLinear(3, 2, b=0.5)
    with pytest.raises(SpecError, match="max_out"):
        BcosConv2d(3, 2, 1, max_out=0)
    with pytest.raises(SpecError, match="groups=2"):
        BcosConv2d(3, 2, 1, groups=2)


def test_layers_say_what_they_are() -> None:
    assert repr(BcosLinear(3, 2, b=1.5)) == "BcosLinear(3, 2, b=1.5, max_out=1)"
    assert "stride=(2, 2)" in repr(BcosConv2d(3, 2, 1, stride=2))
    assert repr(LogitBias(10)) == "LogitBias(-2.19722)"


def test_initial_weights_are_torch_s_own() -> None:
    torch.manual_seed(0)
    ours = BcosLinear(5, 3).weight
    torch.manual_seed(0)
    assert torch.equal(ours, nn.Linear(5, 3, bias=False).weight)
    torch.manual_seed(0)
    conv = BcosConv2d(4, 6, 3, groups=2).weight
    torch.manual_seed(0)
    assert torch.equal(conv, nn.Conv2d(4, 6, 3, groups=2, bias=False).weight)


@pytest.mark.parametrize(("classes", "value"), [(10, -math.log(9)), (2, 0.0), (1, 0.0)])
def test_the_logit_bias_makes_silence_uninformed(classes: int, value: float) -> None:
    bias = LogitBias(classes)
    assert bias.value == pytest.approx(value)
    assert torch.equal(bias(torch.zeros(2, classes)), torch.full((2, classes), bias.value))
    assert logit_bias(nn.Sequential(nn.Identity(), bias)) == bias.value
    assert logit_bias(nn.Identity()) == 0.0
    assert LogitBias(classes, value=-3.0).value == -3.0


def test_an_inverted_copy_is_appended_to_the_channels() -> None:
    x = torch.rand(2, 3, 5, 4)
    y = add_inverse(x)
    assert y.shape == (2, 6, 5, 4)
    assert torch.equal(y[:, :3], x) and torch.equal(y[:, 3:], 1 - x)
    assert torch.equal(add_inverse(x[0]), y[0])
