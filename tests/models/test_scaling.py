"""The derivatives that are written out are those of the formulas, twice and in both directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polysem.models.scaling import bcos_scale, squared_norm, vector_norm, wide

# torch's own forward-mode rules are compiled with it on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def scale(response: Tensor, norm: Tensor) -> Tensor:
    return bcos_scale(response, norm, 2, frozen=False)


CASES = {
    "scale": (scale, lambda: (draw(2, 3, 5), draw(2, 3, 1).detach().abs().requires_grad_())),
    "scale, norm of each": (
        scale,
        lambda: (draw(2, 3), draw(2, 3).detach().exp().requires_grad_()),
    ),
    "norm": (vector_norm, lambda: (draw(2, 3, 5),)),
    "squared norm": (lambda x: squared_norm(x, 1), lambda: (draw(2, 3, 5),)),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_the_values(case: str) -> None:
    function, inputs = CASES[case]
    assert torch.autograd.gradcheck(
        function, inputs(), check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(function, inputs())


def test_values_are_those_of_the_formulas() -> None:
    response, norm, x = draw(2, 3, 5), draw(2, 3, 1).detach().abs(), draw(2, 3, 5)
    expected = response / norm * response.abs()
    torch.testing.assert_close(scale(response, norm), expected)
    torch.testing.assert_close(vector_norm(x), x.square().sum(-1, keepdim=True).sqrt())
    torch.testing.assert_close(squared_norm(x, 1), x.square().sum(1))


@pytest.mark.parametrize("case", ["scale", "norm", "squared norm"])
def test_a_compiler_sees_the_same_function_in_one_piece(case: str) -> None:
    function, inputs = CASES[case]
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    results = []
    for run in (function, compiled):
        given = inputs()
        value = run(*given)
        results.append((value, *torch.autograd.grad(value.sin().sum(), given)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_zero_vector_has_a_derivative() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(vector_norm(x).sum() + squared_norm(x, 1).sum(), x)
    assert torch.equal(grad, torch.zeros(2, 3))


def test_functional_transforms_agree_with_autograd() -> None:
    weight = draw(7, 5).detach()

    def power(x: Tensor) -> Tensor:
        return scale(x @ weight.T, vector_norm(x)).sum()

    x = draw(5).detach()
    hessian = torch.func.hessian(power)(x)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(power, x))
    rows = torch.func.vmap(torch.func.grad(power))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(rows[1], 2 * 0 + rows[0])  # of degree 0, as power is of degree 1


@pytest.mark.parametrize("b", [1.5, 2, 3])
def test_frozen_scaling_has_the_same_values_and_a_constant_factor(b: float) -> None:
    response, norm = draw(2, 3, 5), draw(2, 3, 1).detach().exp()
    free = bcos_scale(response, norm, b, frozen=False)
    frozen = bcos_scale(response, norm, b, frozen=True)
    assert torch.equal(free, frozen)
    (grad,) = torch.autograd.grad(frozen.sum(), response)
    torch.testing.assert_close(grad * response, frozen)


def test_half_precision_is_widened_where_squares_would_overflow() -> None:
    x = torch.full((1, 64), 300.0, dtype=torch.float16)
    assert wide(x).dtype == torch.float32 and wide(x.double()).dtype == torch.float64
    assert vector_norm(x).item() == pytest.approx(2400)
    assert squared_norm(x, 1).item() == pytest.approx(2400**2)
