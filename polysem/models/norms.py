"""Normalisation: for B-cos networks, its variance held fixed to explain them; and LipsFormer's.

Each is one linear map once its variance is a constant, which is what it becomes while its
attribute `explaining` is true; :func:`polysem.models.bcos.explanation_mode` sets that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.scaling import wide

__all__ = [
    "BatchNorm2d",
    "BatchNormUncentered2d",
    "CenterNorm",
    "GroupNorm1",
    "LayerNorm",
    "PositionNorm2d",
    "frozen_variance",
    "held",
]


def frozen_variance(
    x: Tensor, fused: Tensor, dims: tuple[int, ...], weight: Tensor, eps: float
) -> Tensor:
    """Return the values of `fused`, the same normalisation, with the variance held constant.

    Parameters
    ----------
    x : Tensor
        What is normalised.
    fused : Tensor
        The result, computed without care for derivatives and without bias.
    dims : tuple of int
        Axes that mean and variance are taken over.
    weight : Tensor
        Broadcasts against x.
    eps : float
        Added to the variance.
    """
    full = wide(x)
    variance, mean = torch.var_mean(full, dim=dims, correction=0, keepdim=True)
    linear = (full - mean) * (variance.detach() + eps).rsqrt() * weight
    linear = linear.to(fused.dtype)
    # The two differ in the last bits; what is explained should be the very value computed outside.
    return linear + (fused - linear).detach()


def held(norm: nn.Module, x: Tensor, values: Tensor | None = None) -> Tensor:
    """Normalise x with the same values, linear in x for derivatives.

    Parameters
    ----------
    norm : nn.Module
        A LayerNorm over the last axis, one that can hold itself fixed, or nothing.
    x : Tensor
    values : Tensor, optional
        ``norm(x)``, where it is known.

    Raises
    ------
    SpecError
        If it is another normalisation.
    """
    linear_already = isinstance(norm, nn.Identity) or hasattr(norm, "explaining")
    if not (linear_already or isinstance(norm, nn.LayerNorm)):
        raise SpecError(f"a {type(norm).__name__} cannot be held fixed; LayerNorm can")
    values = norm(x) if values is None else values
    if linear_already:
        return values
    assert isinstance(norm, nn.LayerNorm)
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    linear = (x - mean) * (variance.detach() + norm.eps).rsqrt()
    if norm.weight is not None:
        linear = linear * norm.weight
    fixed: Tensor = linear + (values - linear).detach()
    return fixed


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of [..., d_model] with a weight and no bias.

    In explanation mode the variance is a constant; the mean stays part of the linear map.
    """

    explaining: bool = False

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, eps=eps, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x over its last axis."""
        fused = super().forward(x)
        if not self.explaining:
            return fused
        return frozen_variance(x, fused, (-1,), self.weight, self.eps)


class PositionNorm2d(LayerNorm):
    """:class:`LayerNorm` over the channels at each position of [image, channel, y, x]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x over its channels."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupNorm1(nn.GroupNorm):
    """Normalise each image of [image, channel, y, x] as a whole, a weight a channel and no bias.

    In explanation mode the variance is a constant; the mean stays part of the linear map.
    """

    explaining: bool = False

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, channels, eps=eps, device=device, dtype=dtype)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x over all axes but the first."""
        fused = super().forward(x)
        if not self.explaining:
            return fused
        return frozen_variance(x, fused, (1, 2, 3), self.weight[:, None, None], self.eps)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of [image, channel, y, x] with a weight and no bias.

    In evaluation mode it subtracts the running mean, which acts as an additive term: W(x) alone
    no longer sums to the logit. :class:`BatchNormUncentered2d` is the one for complete models.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum, device=device, dtype=dtype)
        self.register_parameter("bias", None)


class BatchNormUncentered2d(BatchNorm2d):
    """Divide each channel of [image, channel, y, x] by its standard deviation; subtract nothing.

    The deviation is the usual one, about the mean. `running_var` averages the biased variances
    of batches, as in the official code; `running_mean` stays zero and is kept for its key.
    In explanation mode the variance is a constant, also while training.
    """

    explaining: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x by batch statistics while training, else by running ones."""
        running = self.running_var
        assert running is not None
        variance = running
        if self.training:
            variance = wide(x).var(dim=(0, 2, 3), correction=0)
            with torch.no_grad():
                running.lerp_(variance.to(running.dtype), self.momentum or 0.0)
            variance = variance.detach() if self.explaining else variance
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale.to(x.dtype)[:, None, None]


class CenterNorm(nn.Module):
    """Subtract the mean over the last axis: ``γ ⊙ D / (D − 1) · (x − mean x) + β``.

    A normalisation that divides by no variance, from LipsFormer (arXiv 2304.09856): at γ = 1 it
    stretches nothing by more than D / (D − 1). Without β it is linear, hence as it is in
    explanation mode too.

    Parameters
    ----------
    features : int
        D, above 1.
    bias : bool
        Whether there is a β.

    Raises
    ------
    SpecError
        If there is only one feature, which would be its own mean.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        features: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features < 2:
            raise SpecError(f"CenterNorm needs at least 2 features, got {features}")
        self.features = features
        self.weight = nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty_like(self.weight)) if bias else None
        self.reset_parameters()

    @property
    def stretch(self) -> float:
        """``D / (D − 1)``, the spectral norm at γ = 1."""
        return self.features / (self.features - 1)

    def reset_parameters(self) -> None:
        """Go back to γ = 1, β = 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Centre x [..., features]."""
        y = (x - x.mean(-1, keepdim=True)) * (self.stretch * self.weight)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"{self.features}, bias={self.bias is not None}"
