"""How a B-cos layer scales its linear responses, with derivatives written out; for `bcos`.

Autograd would record three or four tensors of the size of the output, and walk over each on the
way back. Written out, a layer keeps its responses and one number per input, which is what makes
B-cos training cost little more than standard training. All derivatives can be derived again.
A compiler writes them out itself, and would stop at ours: while it traces, the plain formulas run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["HALF", "bcos_scale", "squared_norm", "vector_norm", "wide"]

HALF = (torch.float16, torch.bfloat16)


def wide(x: Tensor) -> Tensor:
    """Return x in float32 if it is in half precision, in which sums of squares would overflow."""
    return x.float() if x.dtype in HALF else x


def bcos_scale(response: Tensor, norm: Tensor, b: float, *, frozen: bool) -> Tensor:
    """Return ``ŵᵀx · |cos(x, ŵ)|^(B−1)`` from the responses ŵᵀx and the norms ‖x‖.

    Parameters
    ----------
    response : Tensor
        Of any shape.
    norm : Tensor
        Broadcasts against `response`; positive, in float32 at least.
    b : float
        The exponent B; above 1.
    frozen : bool
        Whether the factor ``|cos|^(B−1)`` is a constant for derivatives.
    """
    if b == 2 and not frozen and not torch.compiler.is_compiling():
        scaled: Tensor = _Square.apply(response, norm)  # type: ignore[no-untyped-call]
        return scaled
    if frozen:
        norm = norm.detach()
    cosine = (response.detach() if frozen else response) / norm
    factor = cosine.abs() if b == 2 else (cosine.abs() + 1e-6) ** (b - 1)
    return factor.to(response.dtype) * response


def vector_norm(x: Tensor) -> Tensor:
    """Return ``‖x‖ + 1e-12`` over the last axis, kept with size 1, in float32 at least."""
    if torch.compiler.is_compiling():
        plain: Tensor = torch.linalg.vector_norm(wide(x), dim=-1, keepdim=True) + 1e-12
        return plain
    norm: Tensor = _Norm.apply(x)  # type: ignore[no-untyped-call]
    return norm


def squared_norm(x: Tensor, dim: int) -> Tensor:
    """Return ``Σ x²`` over one axis, in float32 at least."""
    if torch.compiler.is_compiling():
        return wide(x).square().sum(dim)
    total: Tensor = _SquaredNorm.apply(x, dim)  # type: ignore[no-untyped-call]
    return total


class _Square(torch.autograd.Function):
    """``y = |r| r / n``, hence ``dy = 2 |r|/n dr − y/n dn``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(response: Tensor, norm: Tensor) -> Tensor:
        scaled: Tensor = response.abs().div_(norm).mul_(response)
        return scaled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        response, norm = ctx.saved_tensors
        slope = grad * (response.abs() / norm)
        from_norm = -(slope * response).sum_to_size(norm.shape) / norm
        return (2 * slope).to(response.dtype), from_norm

    @staticmethod
    def jvp(ctx: Any, dr: Tensor, dn: Tensor) -> Tensor:
        response, norm = ctx.saved_tensors
        factor = response.abs() / norm
        tangent: Tensor = (factor * (2 * dr - response / norm * dn)).to(response.dtype)
        return tangent


class _Norm(torch.autograd.Function):
    """``n = ‖x‖ + ε``, hence ``dn = xᵀdx / n`` up to ε, and 0 where x is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        dtype = torch.float32 if x.dtype in HALF else x.dtype
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype) + 1e-12
        return norm

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, norm = ctx.saved_tensors
        slope: Tensor = (x * (grad / norm)).to(x.dtype)
        return slope

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        x, norm = ctx.saved_tensors
        tangent: Tensor = (wide(x) * dx).sum(-1, keepdim=True) / norm
        return tangent


class _SquaredNorm(torch.autograd.Function):
    """``s = ‖x‖²``, hence ``ds = 2 xᵀdx``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        # torch's own norm over any but the last axis takes many times as long.
        total: Tensor = wide(x).square().sum(dim)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        x, ctx.dim = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return (x * (2 * grad).unsqueeze(ctx.dim)).to(x.dtype), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * (wide(x) * dx).sum(ctx.dim)
