"""B-cos layers, from which `vit` and `cnn` build networks that explain themselves exactly.

A B-cos unit answers with ``y = ŵᵀx · |cos(x, ŵ)|^(B−1)``, where ŵ has unit norm and nothing is
added. A network of such units, of bias-free normalisation and of attention is a product of
matrices that depend on the input, one matrix W(x), so that ``logit = Σ W(x) x + logit bias``.
Inside :func:`explanation_mode` everything that makes up W(x) is held fixed, and one backward
pass reads W(x) off as the gradient; the values of the forward pass stay what they were.

Böhle, Fritz, Schiele: B-cos Networks, arXiv 2205.10268 and 2306.10898; B-cos transformers,
arXiv 2301.08669. A module that holds something fixed has an attribute `explaining`; the
normalisations are in `norms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.scaling import bcos_scale, squared_norm, vector_norm, wide

__all__ = [
    "BcosConv2d",
    "BcosLinear",
    "DetachableIdentity",
    "LogitBias",
    "add_inverse",
    "explanation_mode",
    "logit_bias",
]


@contextmanager
def explanation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Hold everything fixed that makes up W(x), so that gradients are rows of W(x).

    The forward pass gives the same values as outside. Use it in evaluation mode: while training,
    batch statistics mix images. May be nested; each level restores what it found, also when the
    body raises.

    Examples
    --------
    >>> layer = BcosLinear(3, 1)
    >>> x = torch.rand(3, requires_grad=True)
    >>> with explanation_mode(layer):
    ...     y = layer(x)
    >>> (row,) = torch.autograd.grad(y.sum(), x)
    >>> bool(torch.isclose(row @ x, y.sum()))
    True
    """
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "explaining")]
    before = [module.explaining for module in modules]
    try:
        for module in modules:
            module.explaining = True
        yield model
    finally:
        for module, was in zip(modules, before, strict=True):
            module.explaining = was


def add_inverse(images: Tensor) -> Tensor:
    """Concatenate ``[x, 1 − x]`` along the channels of images [..., channel, y, x] in [0, 1].

    Dark then counts as much as bright, and a pixel's colour is the direction of its six values.
    """
    return torch.cat([images, 1 - images], dim=-3)


def _unit(weight: Tensor) -> Tensor:
    """Scale each unit's weights to unit norm; a unit of zeros stays silent instead of NaN."""
    dims = tuple(range(1, weight.ndim))
    norm = torch.linalg.vector_norm(wide(weight), dim=dims, keepdim=True)
    unit: Tensor = (weight / norm.clamp_min(1e-12)).to(weight.dtype)
    return unit


def _check_options(b: float, max_out: int) -> None:
    if not b >= 1:
        raise SpecError(f"B of a B-cos layer must be at least 1 (1 is linear), got {b}")
    if max_out < 1:
        raise SpecError(f"max_out of a B-cos layer must be at least 1, got {max_out}")


class BcosLinear(nn.Module):
    """Map [..., in_features] to [..., out_features], each unit ``ŵᵀx · |cos(x, ŵ)|^(B−1)``.

    ``|y| ≤ ‖x‖``, with equality only for an aligned input; scaling x scales y, scaling a unit's
    weights changes nothing. As in the official code ‖x‖ has 1e-12 added, and |cos| 1e-6 when B is
    neither 1 nor 2. There is no bias.

    Parameters
    ----------
    in_features, out_features : int
    b : float
        The exponent B; 1 leaves a linear layer of unit-norm weights.
    max_out : int
        Each unit takes the largest of this many responses, before scaling. The rows of `weight`
        [out_features · max_out, in_features] hold the candidates of a unit side by side.

    Raises
    ------
    SpecError
        If `b` or `max_out` is below 1.
    """

    explaining: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        b: float = 2,
        max_out: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(b, max_out)
        self.in_features, self.out_features = in_features, out_features
        self.b, self.max_out = b, max_out
        shape = (out_features * max_out, in_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as torch does for a linear layer; their scale sets the pace of learning."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def unit_weight(self) -> Tensor:
        """Return ŵ [out_features · max_out, in_features], each row of norm 1."""
        return _unit(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses of all units to x [..., in_features]."""
        response = F.linear(x, self.unit_weight())
        if self.max_out > 1:
            response = torch.unflatten(response, -1, (self.out_features, self.max_out)).amax(-1)
        if self.b == 1:
            return response
        return bcos_scale(response, vector_norm(x), self.b, frozen=self.explaining)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"{self.in_features}, {self.out_features}, b={self.b}, max_out={self.max_out}"


class BcosConv2d(nn.Module):
    """Convolve images [image, channel, y, x]: a :class:`BcosLinear` on every patch.

    The norm is that of the patch under the kernel, of the unit's own group of channels, zero
    padding counted; as in the official code 1e-6 is added to its square.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : int or (int, int)
        As in :class:`torch.nn.Conv2d`; padding is with zeros.
    groups : int
        Blocks of channels that do not see each other.
    b, max_out
        As in :class:`BcosLinear`.

    Raises
    ------
    SpecError
        If `b` or `max_out` is below 1, or the channels do not divide into `groups`.
    """

    explaining: bool = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        b: float = 2,
        max_out: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(b, max_out)
        if in_channels % groups or out_channels % groups:
            raise SpecError(
                f"{in_channels} input and {out_channels} output channels must both divide into "
                f"groups={groups}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups, self.b, self.max_out = groups, b, max_out
        shape = (out_channels * max_out, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as torch does for a convolution."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def unit_weight(self) -> Tensor:
        """Return ŵ [out_channels · max_out, in_channels / groups, y, x], each filter of norm 1."""
        return _unit(self.weight)

    def patch_norm(self, x: Tensor) -> Tensor:
        """Return the norm of the patch that each output sees [image, 1 or out_channels, y, x]."""
        squares = squared_norm(torch.unflatten(x, 1, (self.groups, -1)), 2)
        if self.dilation == (1, 1):
            mean = F.avg_pool2d(squares, self.kernel_size, self.stride, self.padding)
            total = mean * (self.kernel_size[0] * self.kernel_size[1])
        else:
            ones = squares.new_ones(self.groups, 1, *self.kernel_size)
            with torch.autocast(x.device.type, enabled=False):  # would round the sum of squares
                total = F.conv2d(
                    squares,
                    ones,
                    stride=self.stride,
                    padding=self.padding,
                    dilation=self.dilation,
                    groups=self.groups,
                )
        norm = (total + 1e-6).sqrt()
        if self.groups == 1:
            return norm
        return norm.repeat_interleave(self.out_channels // self.groups, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses of all units to x [image, channel, y, x]."""
        response = F.conv2d(
            x,
            self.unit_weight(),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.max_out > 1:
            response = torch.unflatten(response, 1, (self.out_channels, self.max_out)).amax(2)
        if self.b == 1:
            return response
        return bcos_scale(response, self.patch_norm(x), self.b, frozen=self.explaining)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, b={self.b}, max_out={self.max_out}"
        )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class DetachableIdentity(nn.Module):
    """Return the input, in explanation mode as a constant; for the queries and keys of attention.

    With both constant the attention pattern is part of W(x), as in arXiv 2301.08669.
    """

    explaining: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x.detach() if self.explaining else x


class LogitBias(nn.Module):
    """Add one constant to all logits, outside of what W(x) explains.

    By default ``−ln(C − 1)`` for C classes, at which a silent network predicts each class with
    probability 1/C; 0 for a single class.
    """

    def __init__(self, classes: int, *, value: float | None = None) -> None:
        super().__init__()
        self.value = -math.log(max(classes - 1, 1)) if value is None else value

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits [..., class] shifted by the constant."""
        return logits + self.value

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"{self.value:.6g}"


def logit_bias(model: nn.Module) -> float:
    """Return what a model adds to its logits beyond ``Σ W(x) x``; 0.0 if nothing."""
    return sum(module.value for module in model.modules() if isinstance(module, LogitBias))
