"""Layers of a network on its way from standard to B-cos, for `bcosify`; all keep trained weights.

How far a network has gone is one number, the share s of its :class:`Conversion`. At 0 each layer
computes what the layer computed that it replaces; at 1 it is a B-cos layer, and the network is one
matrix W(x). Between the two everything moves in step and without a jump: the exponent B is
``1 + s (B − 1)``, whatever is added (biases, means that batch norms subtract) counts ``1 − s``, and
a max-pooling counts ``1 − s`` beside the average-pooling that counts s.

Weights are not scaled to unit norm as in networks that are B-cos from birth: a response
``wᵀx (|wᵀx| / ‖x‖)^(B−1)`` grows with ``‖w‖^B``, and B = 1 is the layer that was trained.
B-cosification, arXiv 2411.00715.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import BcosConv2d, BcosLinear, LogitBias
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
    "Conversion",
    "DetachableGate",
    "InverseNorm",
    "advance",
]


class Conversion(nn.Module):
    """How far a network has been converted; its layers share one, which the state dict keeps.

    Parameters
    ----------
    share : float
        From 0, the original function, to 1, a B-cos network. May be set at any time.
    b : float
        The exponent at 1.

    Raises
    ------
    SpecError
        If a number is out of its range.
    """

    def __init__(self, share: float = 0.0, b: float = 2.0) -> None:
        super().__init__()
        if not b >= 1:
            raise SpecError(f"B of a B-cos layer must be at least 1 (1 is linear), got {b}")
        self.b = b
        self.share = share

    @property
    def share(self) -> float:
        """How much of the conversion is done."""
        return self._share

    @share.setter
    def share(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise SpecError(f"the share of a conversion must be from 0 to 1, got {value}")
        self._share = value

    @property
    def exponent(self) -> float:
        """B as it is now."""
        return 1 + self.share * (self.b - 1)

    @overload
    def left_of(self, term: Tensor) -> Tensor: ...
    @overload
    def left_of(self, term: None) -> None: ...
    def left_of(self, term: Tensor | None) -> Tensor | None:
        """Return what is left of an additive term; None stays None.

        At share 1 that is zeros rather than nothing, since training on several processes waits
        for a gradient of every parameter.
        """
        return term if term is None or self.share == 0 else term * (1 - self.share)

    def get_extra_state(self) -> Tensor:
        """Return the share, as a tensor that any checkpoint can hold."""
        return torch.tensor(self.share, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the share from a state dict."""
        self.share = float(state)

    def extra_repr(self) -> str:
        """Return the numbers that `repr` shows."""
        return f"share={self.share:g}, b={self.b:g}"


def advance(model: nn.Module, *, step: int, steps: int) -> None:
    """Set the share that a B-cosified model has after some steps of fine-tuning; never set it back.

    Parameters
    ----------
    model : nn.Module
        Any; without a :class:`Conversion` it stays as it is.
    step : int
        Steps taken.
    steps : int
        The share grows evenly over so many; 0 converts at once.
    """
    share = min(1.0, step / steps) if steps else 1.0
    for module in model.modules():
        if isinstance(module, Conversion):
            module.share = max(module.share, share)


class _Converted(nn.Module):
    """A layer that looks at the network's conversion, which stays a module of the network alone."""

    _shared: tuple[Conversion]

    @property
    def conversion(self) -> Conversion:
        """The conversion that this layer is part of."""
        return self._shared[0]

    def _take(self, like: nn.Module, conversion: Conversion) -> None:
        """Take the very parameters of the layer that is replaced."""
        self._shared = (conversion,)  # in a tuple, as a module would be registered
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(like, name))
        self.train(like.training)


class BcosifiedLinear(_Converted, BcosLinear):
    """A linear layer turning into ``wᵀx (|wᵀx| / ‖x‖)^(B−1)``, its bias fading.

    Parameters
    ----------
    like : nn.Linear
        Whose weights it takes.
    conversion : Conversion
    """

    bias: Tensor | None

    def __init__(self, like: nn.Linear, conversion: Conversion) -> None:
        super().__init__(like.in_features, like.out_features, b=conversion.b, device="meta")
        self._take(like, conversion)

    def unit_weight(self) -> Tensor:
        """Return the weights as they are: those of a B-cosified layer are not normalised."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses of all units to x [..., in_features]."""
        b, bias = self.conversion.exponent, self.conversion.left_of(self.bias)
        if b == 1:
            return F.linear(x, self.weight, bias)
        y = bcos_scale(F.linear(x, self.weight), vector_norm(x), b, frozen=self.explaining)
        return y if bias is None else y + bias


class BcosifiedConv2d(_Converted, BcosConv2d):
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
        self._take(like, conversion)

    def unit_weight(self) -> Tensor:
        """Return the weights as they are: those of a B-cosified layer are not normalised."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses of all units to x [image, channel, y, x]."""
        b, bias = self.conversion.exponent, self.conversion.left_of(self.bias)
        options = self.stride, self.padding, self.dilation, self.groups
        if b == 1:
            return F.conv2d(x, self.weight, bias, *options)
        response = F.conv2d(x, self.weight, None, *options)
        y = bcos_scale(response, self.patch_norm(x), b, frozen=self.explaining)
        return y if bias is None else y + bias[:, None, None]


class BcosifiedQkv(_Converted, nn.Linear):
    """The linear layer of queries, keys and values, which stays linear; the values' bias fades.

    Biases of queries and keys act on the attention pattern alone, which is part of W(x); only the
    values' are added to what the network passes on.
    """

    def __init__(self, like: nn.Linear, conversion: Conversion) -> None:
        super().__init__(like.in_features, like.out_features, device="meta")
        self._take(like, conversion)

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, keys and values [..., 3 · head · d_head]."""
        if self.bias is None:
            return F.linear(x, self.weight)
        q, k, v = self.bias.chunk(3)
        v = self.conversion.left_of(v)
        return F.linear(x, self.weight, torch.cat([q, k, v]))


class BcosifiedLayerNorm(_Converted, nn.LayerNorm):
    """Layer normalisation whose bias fades; in explanation mode the variance is a constant."""

    explaining: bool = False

    def __init__(self, like: nn.LayerNorm, conversion: Conversion) -> None:
        super().__init__(like.normalized_shape, eps=like.eps, device="meta")
        self._take(like, conversion)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x over its last axis."""
        bias = self.conversion.left_of(self.bias)
        fused = F.layer_norm(x, self.normalized_shape, self.weight, None, self.eps)
        if self.explaining:
            fused = frozen_variance(x, fused, (-1,), self.weight, self.eps)
        return fused if bias is None else fused + bias


class BcosifiedBatchNorm2d(_Converted, nn.BatchNorm2d):
    """Batch normalisation whose mean and bias fade until it only divides by the deviation.

    The deviation stays that about the mean. Running statistics are kept as torch does.
    """

    def __init__(self, like: nn.BatchNorm2d, conversion: Conversion) -> None:
        super().__init__(like.num_features, eps=like.eps, momentum=like.momentum, device="meta")
        self._take(like, conversion)
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


class BcosifiedPool(_Converted):
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
        self._shared = (conversion,)
        self.max = like
        self.mean = nn.AvgPool2d(like.kernel_size, like.stride, like.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [image, channel, y, x]."""
        share = self.conversion.share
        if share in (0, 1):
            pooled: Tensor = self.mean(x) if share else self.max(x)
            return pooled
        return torch.lerp(self.max(x), self.mean(x), share)


class BcosifiedLogitBias(_Converted, LogitBias):
    """The constant ``−ln(C − 1)`` of logits, growing with the conversion."""

    def __init__(self, classes: int, conversion: Conversion) -> None:
        nn.Module.__init__(self)
        self.full = -math.log(max(classes - 1, 1))
        self._shared = (conversion,)

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
