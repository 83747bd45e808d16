"""Layers of a network on its way from standard to B-cos, for `bcosify`; all keep trained weights.

How far a network has gone is one number, the share s of its
:class:`~polysem.models.conversion.Conversion`. A layer gives ``(1 − s)`` times what the layer gave
that it replaces, and s times what a B-cos layer with the same weights gives: nothing added (no
biases, no means that batch norms subtract), B, average- instead of max-pooling. At 0 the network
computes what it was trained to, at 1 it is one matrix W(x), and between the two nothing jumps.

Weights are not scaled to unit norm as in networks that are B-cos from birth: a response
``wᵀx (|wᵀx| / ‖x‖)^(B−1)`` grows with ``‖w‖^B``. B-cosification, arXiv 2411.00715, which
converts at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import BcosConv2d, BcosLinear, LogitBias
from polysem.models.conversion import Conversion, Converted
from polysem.models.norms import frozen_variance
from polysem.models.scaling import bcos_scale, vector_norm, wide

__all__ = [
    "BcosifiedBatchNorm2d",
    "BcosifiedConv2d",
    "BcosifiedLayerNorm",
    "BcosifiedLinear",
    "BcosifiedLogitBias",
    "BcosifiedPool",
    "BcosifiedQkv",
    "DetachableGate",
    "InverseNorm",
]


class BcosifiedLinear(Converted, BcosLinear):
    """A linear layer turning into ``wᵀx (|wᵀx| / ‖x‖)^(B−1)``, its bias fading.

    As in every B-cos layer ‖x‖ has 1e-12 added, and the ratio 1e-6 when B is neither 1 nor 2.

    Parameters
    ----------
    like : nn.Linear
        Whose weights it takes.
    conversion : Conversion
    """

    bias: Tensor | None

    def __init__(self, like: nn.Linear, conversion: Conversion) -> None:
        super().__init__(like.in_features, like.out_features, b=conversion.b, device="meta")
        self.take(like, conversion)

    def unit_weight(self) -> Tensor:
        """Return the weights as they are: those of a B-cosified layer are not normalised."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses of all units to x [..., in_features]."""
        if self.conversion.share == 0:
            return F.linear(x, self.weight, self.bias)
        y = self.conversion.mix(F.linear(x, self.weight), lambda r: self._scaled(r, x))
        bias = self.conversion.left_of(self.bias)
        return y if bias is None else y + bias.to(y.dtype)

    def _scaled(self, response: Tensor, x: Tensor) -> Tensor:
        if self.b == 1:
            return response
        return bcos_scale(response, vector_norm(x), self.b, frozen=self.explaining)


class BcosifiedConv2d(Converted, BcosConv2d):
    """A convolution turning into a :class:`BcosifiedLinear` on every patch.

    Parameters
    ----------
    like : nn.Conv2d
        Whose weights it takes; padded with zeros.
    conversion : Conversion
    """

    bias: Tensor | None

    def __init__(self, like: nn.Conv2d, conversion: Conversion) -> None:
        if isinstance(like.padding, str) or like.padding_mode != "zeros":
            raise SpecError(
                f"{like} cannot be B-cosified: its padding must be numbers of rows and columns "
                "of zeros"
            )
        super().__init__(
            like.in_channels,
            like.out_channels,
            (like.kernel_size[0], like.kernel_size[1]),
            stride=(like.stride[0], like.stride[1]),
            padding=(like.padding[0], like.padding[1]),
            dilation=(like.dilation[0], like.dilation[1]),
            groups=like.groups,
            b=conversion.b,
            device="meta",
        )
        self.take(like, conversion)

    def unit_weight(self) -> Tensor:
        """Return the weights as they are: those of a B-cosified layer are not normalised."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses of all units to x [image, channel, y, x]."""
        options = self.stride, self.padding, self.dilation, self.groups
        if self.conversion.share == 0:
            return F.conv2d(x, self.weight, self.bias, *options)
        response = F.conv2d(x, self.weight, None, *options)
        y = self.conversion.mix(response, lambda r: self._scaled(r, x))
        bias = self.conversion.left_of(self.bias)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]

    def _scaled(self, response: Tensor, x: Tensor) -> Tensor:
        if self.b == 1:
            return response
        return bcos_scale(response, self.patch_norm(x), self.b, frozen=self.explaining)


class BcosifiedQkv(Converted, nn.Linear):
    """The linear layer of queries, keys and values, which stays linear; the values' bias fades.

    Biases of queries and keys act on the attention pattern alone, which is part of W(x); only the
    values' are added to what the network passes on.
    """

    def __init__(self, like: nn.Linear, conversion: Conversion) -> None:
        super().__init__(like.in_features, like.out_features, device="meta")
        self.take(like, conversion)

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, keys and values [..., 3 · head · d_head]."""
        if self.bias is None:
            return F.linear(x, self.weight)
        q, k, v = self.bias.chunk(3)
        v = self.conversion.left_of(v)
        return F.linear(x, self.weight, torch.cat([q, k, v]))


class BcosifiedLayerNorm(Converted, nn.LayerNorm):
    """Layer normalisation whose bias fades; in explanation mode the variance is a constant."""

    explaining: bool = False

    def __init__(self, like: nn.LayerNorm, conversion: Conversion) -> None:
        super().__init__(like.normalized_shape, eps=like.eps, device="meta")
        self.take(like, conversion)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x over its last axis."""
        bias = self.conversion.left_of(self.bias)
        fused = F.layer_norm(x, self.normalized_shape, self.weight, None, self.eps)
        if self.explaining:
            fused = frozen_variance(x, fused, (-1,), self.weight, self.eps)
        return fused if bias is None else fused + bias


class BcosifiedBatchNorm2d(Converted, nn.BatchNorm2d):
    """Batch normalisation whose mean and bias fade until it only divides by the deviation.

    The deviation stays that about the mean. Running statistics are kept as torch does.
    """

    def __init__(self, like: nn.BatchNorm2d, conversion: Conversion) -> None:
        super().__init__(like.num_features, eps=like.eps, momentum=like.momentum, device="meta")
        self.take(like, conversion)
        for name, buffer in like.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x by batch statistics while training, else by running ones."""
        mean, variance = self._statistics(x)
        scale = self.weight * (variance + self.eps).rsqrt()
        y = x * scale.to(x.dtype)[:, None, None]
        added = self.conversion.left_of(self.bias - mean * scale)
        return y + added.to(x.dtype)[:, None, None]

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel; while training also keep them."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if not self.training:
            return self.running_mean, self.running_var
        variance, mean = torch.var_mean(wide(x), dim=(0, 2, 3), correction=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            kept = self.momentum
            weight = 1 / float(self.num_batches_tracked) if kept is None else kept
            n = x.numel() / x.shape[1]
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
            unbiased = variance * (n / max(n - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)
        return mean, variance


class BcosifiedPool(Converted):
    """Max-pooling of maps turning into average-pooling over the same windows.

    Parameters
    ----------
    like : nn.MaxPool2d
        Undilated, and not rounding its output's size up.
    conversion : Conversion
    """

    def __init__(self, like: nn.MaxPool2d, conversion: Conversion) -> None:
        if like.dilation not in (1, (1, 1)) or like.ceil_mode:
            raise SpecError(f"{like} cannot be B-cosified: its windows have no average")
        super().__init__()
        self.share_in(conversion)
        self.max = like
        self.mean = nn.AvgPool2d(like.kernel_size, like.stride, like.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [image, channel, y, x]."""
        if self.conversion.share == 1:
            mean: Tensor = self.mean(x)
            return mean
        return self.conversion.mix(self.max(x), lambda _: self.mean(x))


class BcosifiedLogitBias(Converted, LogitBias):
    """The constant ``−ln(C − 1)`` of logits, growing with the conversion."""

    def __init__(self, classes: int, conversion: Conversion) -> None:
        nn.Module.__init__(self)
        self.full = -math.log(max(classes - 1, 1))
        self.share_in(conversion)

    @property
    def value(self) -> float:  # type: ignore[override]
        """What is added now."""
        return self.full * self.conversion.share


class DetachableGate(nn.Module):
    """An activation function ``x g(x)``, such as GELU; in explanation mode g(x) is a constant.

    Parameters
    ----------
    act : nn.Module
        The function, 0 at 0.
    """

    explaining: bool = False

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x g(x)``."""
        if not self.explaining:
            y: Tensor = self.act(x)
            return y
        fixed = x.detach()
        y = self.act(fixed.clone())  # some functions work in place
        gate = torch.where(fixed == 0, torch.zeros_like(fixed), y / fixed)
        # x g(x) rounds anew; what is explained should be the very value computed outside
        linear = x * gate
        return linear + (y - linear).detach()


class InverseNorm(nn.Module):
    """Normalise ``[x, 1 − x]`` by the mean (μ, 1 − μ) and deviation (σ, σ) of colours.

    As ``x + (1 − x) = 1``, subtracting μ is itself linear, ``x − μ = (1 − μ) x − μ (1 − x)``,
    which is how it is computed: nothing is added, so W(x) reaches down to the pixels.

    Parameters
    ----------
    mean, std : sequence of float
        Of the colours, in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            column = torch.tensor(list(values), dtype=torch.float64)[:, None, None]
            self.register_buffer(name, column, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[z, −z]`` with ``z = (x − μ) / σ`` of images ``[x, 1 − x]``."""
        mean, std = self.mean.to(images), self.std.to(images)
        x, inverse = images.chunk(2, dim=-3)
        z = ((1 - mean) * x - mean * inverse) / std
        return torch.cat([z, -z], dim=-3)

    def extra_repr(self) -> str:
        """Return the numbers that `repr` shows."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
