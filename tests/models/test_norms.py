"""Bias-free norms against slow references, and what of them is constant in explanation mode."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import explanation_mode
from polysem.models.norms import (
    BatchNorm2d,
    BatchNormUncentered2d,
    CenterNorm,
    GroupNorm1,
    LayerNorm,
    PositionNorm2d,
    held,
)


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 2 + torch.randn(*shape, generator=generator, dtype=torch.float64)


def lived_in(norm: nn.Module) -> nn.Module:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm.double()


def slow(values: list[float], weights: list[float], eps: float = 1e-5) -> list[float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [
        weight * (value - mean) / math.sqrt(variance + eps)
        for value, weight in zip(values, weights, strict=True)
    ]


def slow_layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    rows = [slow(row, weight.tolist()) for row in x.flatten(0, -2).tolist()]
    return torch.tensor(rows, dtype=torch.float64).view_as(x)


def slow_position_norm(x: Tensor, weight: Tensor) -> Tensor:
    return slow_layer_norm(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)


def slow_group_norm(x: Tensor, weight: Tensor) -> Tensor:
    weights = weight[:, None, None].expand_as(x[0]).flatten().tolist()
    images = [slow(image.flatten().tolist(), weights) for image in x]
    return torch.tensor(images, dtype=torch.float64).view_as(x)


CASES = {
    "layer": (LayerNorm, slow_layer_norm, (2, 3, 5)),
    "position": (PositionNorm2d, slow_position_norm, (2, 5, 3, 4)),
    "group": (GroupNorm1, slow_group_norm, (2, 5, 3, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_equal_a_slow_reference(case: str) -> None:
    make, reference, shape = CASES[case]
    norm, x = lived_in(make(5)), draw(*shape)
    torch.testing.assert_close(norm(x), reference(x, norm.weight.detach()))
    assert norm.bias is None


@pytest.mark.parametrize("case", CASES)
def test_in_explanation_mode_only_the_variance_is_constant(case: str) -> None:
    make, _, shape = CASES[case]
    norm, x = lived_in(make(5)), draw(*shape).requires_grad_()
    probe = torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view_as(x)
    with explanation_mode(norm):
        inside = norm(x)
    assert torch.equal(inside, norm(x))
    (row,) = torch.autograd.grad((inside * probe).sum(), x)
    torch.testing.assert_close((row * x).sum(), (inside * probe).sum())  # linear, so complete

    def frozen(other: Tensor) -> Tensor:  # the same linear map, written with x's deviation
        if case == "group":
            mean = other.mean((1, 2, 3), keepdim=True)
            spread = x.detach().var((1, 2, 3), correction=0, keepdim=True)
        else:
            axis = -1 if case == "layer" else 1
            mean = other.mean(axis, keepdim=True)
            spread = x.detach().var(axis, correction=0, keepdim=True)
        weight = norm.weight if case == "layer" else norm.weight[:, None, None]
        return (other - mean) / (spread + 1e-5).sqrt() * weight

    (expected,) = torch.autograd.grad((frozen(x) * probe).sum(), x)
    torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("case", CASES)
def test_values_in_float32_do_not_depend_on_the_mode(case: str) -> None:
    make, _, shape = CASES[case]
    norm, x = lived_in(make(5)).float(), draw(*shape).float()
    with explanation_mode(norm):
        inside = norm(x)
    assert torch.equal(inside, norm(x))
    half = norm.bfloat16()(x.bfloat16())
    with explanation_mode(norm):
        assert torch.equal(norm(x.bfloat16()), half)


def test_uncentred_batch_norm_divides_by_the_deviation_about_the_mean() -> None:
    norm, x = lived_in(BatchNormUncentered2d(5, momentum=0.3)), draw(2, 5, 3, 4)
    y = norm(x)
    for channel in range(5):
        values = x[:, channel]
        variance = ((values - values.mean()) ** 2).mean()
        expected = norm.weight[channel] * values / torch.sqrt(variance + 1e-5)
        torch.testing.assert_close(y[:, channel], expected)
        torch.testing.assert_close(norm.running_var[channel], 0.7 + 0.3 * variance)
    norm.eval()
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), x * scale[:, None, None])
    assert not norm.running_mean.any()


def test_uncentred_batch_norm_is_complete_in_both_modes_of_training() -> None:
    norm, x = lived_in(BatchNormUncentered2d(5)), draw(2, 5, 3, 4).requires_grad_()
    for training in (True, False):
        norm.train(training)
        with explanation_mode(norm):
            y = norm(x)[0, 1, 2, 3]
        (row,) = torch.autograd.grad(y, x)
        torch.testing.assert_close((row * x).sum(), y)


def test_centred_batch_norm_is_torch_s_without_bias_and_adds_its_mean() -> None:
    norm, x = lived_in(BatchNorm2d(5)), draw(2, 5, 3, 4).requires_grad_()
    reference = nn.BatchNorm2d(5).double()
    reference.weight.data = norm.weight.data
    torch.testing.assert_close(norm(x), reference(x))
    y, shift = norm.eval()(x), norm(torch.zeros_like(x))
    torch.testing.assert_close(y, reference.eval()(x))
    (row,) = torch.autograd.grad(y[0, 1, 2, 3], x)
    torch.testing.assert_close((row * x).sum() + shift[0, 1, 2, 3], y[0, 1, 2, 3])
    assert shift[0, 1, 2, 3].abs() > 0.01


def test_center_norm_equals_its_formula() -> None:
    norm, x = CenterNorm(5).double(), draw(2, 3, 5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, 0.5, 1.5)  # type: ignore[arg-type]
    rows = []
    for row in x.flatten(0, -2).tolist():
        mean = sum(row) / 5
        numbers = zip(row, norm.weight.tolist(), norm.bias.tolist(), strict=True)  # type: ignore[union-attr]
        rows.append([w * 5 / 4 * (value - mean) + b for value, w, b in numbers])
    torch.testing.assert_close(norm(x), torch.tensor(rows, dtype=torch.float64).view_as(x))
    assert CenterNorm(5, bias=False).bias is None


@pytest.mark.parametrize("features", [2, 3, 7])
def test_center_norm_stretches_by_no_more_than_it_says(features: int) -> None:
    norm = CenterNorm(features).double()
    matrix = torch.func.jacrev(norm)(torch.zeros(features, dtype=torch.float64))
    stretch = features / (features - 1)
    assert norm.stretch == stretch
    assert torch.linalg.matrix_norm(matrix, ord=2).item() == pytest.approx(stretch)
    assert torch.linalg.matrix_norm(matrix, ord=math.inf).item() == pytest.approx(2)


def test_center_norm_of_one_feature_is_refused() -> None:
    with pytest.raises(SpecError, match="at least 2"):
        CenterNorm(1)


def test_a_norm_is_held_to_its_values_and_linear_for_derivatives() -> None:
    norm = nn.LayerNorm(5).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    for out in (held(norm, x), held(norm, x, norm(x))):
        torch.testing.assert_close(out, norm(x))
        along = torch.randn(2, 3, 5, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(out, x, along)
        # what reaches it is all there, but for the bias
        whole = ((out - norm.bias) * along).sum()
        torch.testing.assert_close((gradient * x).sum(), whole)
    assert held(nn.Identity(), x) is x
    with pytest.raises(SpecError, match="GroupNorm cannot be held fixed"):
        held(nn.GroupNorm(1, 3), x)
