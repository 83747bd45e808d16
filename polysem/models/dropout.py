"""Parts of a network that are left out at random while it learns, beyond torch's dropout.

All of them draw from torch's generator of the device, whose state a training keeps, and do
nothing in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.patch_dropout import patch_dropout_forward
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from polysem.errors import SpecError

__all__ = [
    "DropHead",
    "PatchDropout",
    "SpatialDropout",
    "check_drop_head",
    "drop_channels",
    "set_drop_head_rate",
]


class DropHead(nn.Module):
    """Leave out whole attention heads while training, other ones for each image.

    What the m heads that stay write is scaled by H / m, so that a head finds its input neither
    weaker nor stronger than in evaluation mode. At least one head stays. Zhou et al., Scheduled
    DropHead, arXiv 2004.13342; masks for each image rather than batch are our choice.

    Parameters
    ----------
    n_heads : int
        H.
    rate : float or "half"
        The probability p at which each head is left out (where all would be, one drawn at random
        stays); or exactly half of them, ``⌊H / 2⌋``.
    device
        Where the masks are drawn.

    Attributes
    ----------
    rate : Tensor
        p, not part of the state; NaN for "half". `set_drop_head_rate` changes it. It is a tensor
        so that a compiled network need not be compiled again.

    Raises
    ------
    SpecError
        If the rate is neither "half" nor in [0, 1).
    """

    rate: Tensor

    def __init__(
        self,
        n_heads: int,
        rate: float | Literal["half"] = "half",
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        rate = check_drop_head(rate)
        self.n_heads, self.exactly_half = n_heads, rate == "half"
        value = float("nan") if rate == "half" else rate
        self.register_buffer("rate", torch.tensor(value, device=device), persistent=False)

    def mask(self, n_images: int) -> Tensor:
        """Draw the factor of each head on each image [image, head]: 0, or H / m."""
        # In float32 whatever the model computes in: half precision has few numbers to draw from.
        draw = torch.rand(n_images, self.n_heads, device=self.rate.device)
        if self.exactly_half:  # a permutation of the heads: the last ⌊H / 2⌋ go
            keep = draw.argsort(dim=1) < self.n_heads - self.n_heads // 2
        else:  # where every draw is below p, the largest stays
            keep = (draw >= self.rate) | (draw == draw.amax(dim=1, keepdim=True))
        # a number divided by a tensor would be rounded twice, and 7 heads of 7 not count as 1
        total = draw.new_full((), self.n_heads)
        return keep * (total / keep.sum(dim=1, keepdim=True))

    def forward(self, z: Tensor) -> Tensor:
        """Return what heads write, z [image, head, token, d_head], without those left out."""
        if not self.training:
            return z
        return z * self.mask(len(z))[:, :, None, None].to(z.dtype)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"{self.n_heads}, rate={'half' if self.exactly_half else f'{float(self.rate):.4g}'}"


def check_drop_head(rate: object) -> float | Literal["half"]:
    """Return the rate of a :class:`DropHead`.

    Raises
    ------
    SpecError
        If it is neither "half" nor in [0, 1).
    """
    if isinstance(rate, str) and rate == "half":
        return "half"
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise SpecError(f"drop_head is {rate!r}; it may be 'half' or a rate from 0 to below 1")
    return float(rate)


def set_drop_head_rate(model: nn.Module, rate: float) -> None:
    """Give every :class:`DropHead` of a model this rate; those of mode "half" have none.

    Raises
    ------
    SpecError
        If the rate is not in [0, 1).
    """
    value = check_drop_head(float(rate))
    for module in model.modules():
        if isinstance(module, DropHead) and not module.exactly_half:
            module.rate.fill_(float(value))


class SpatialDropout(nn.Module):
    """Leave out whole features of an image, at all tokens alike, while training.

    What stays is scaled by ``1 / (1 − rate)``. Tompson et al., arXiv 1411.4280, there for maps.

    Parameters
    ----------
    rate : float
        In [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x [image, token, feature] without some of the features."""
        # torch drops the second of three axes
        return F.dropout1d(x.transpose(1, 2), self.rate, self.training).transpose(1, 2)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"{self.rate}"


def drop_channels(model: nn.Module, rate: float) -> None:
    """Let a timm ViT or ResNet leave out whole channels of an image while it learns.

    In a transformer block :class:`SpatialDropout` takes the places of timm's dropout: MLP units,
    and what MLP and attention write. In a residual block torch's ``Dropout2d`` comes before the
    last convolution.

    Parameters
    ----------
    model : nn.Module
    rate : float
        0 changes nothing.

    Raises
    ------
    SpecError
        If the rate is not in [0, 1), or a block has timm's dropout already.
    """
    if not rate:
        return
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
        raise SpecError(f"spatial_drop_rate is {rate!r}; it may be 0 to below 1")
    for module in model.modules():
        if isinstance(module, Block):
            places = ((module.attn, "proj_drop"), (module.mlp, "drop1"), (module.mlp, "drop2"))
            for part, name in places:
                if getattr(part, name).p:
                    raise SpecError("give spatial_drop_rate or proj_drop_rate, not both")
                setattr(part, name, SpatialDropout(rate))
        elif isinstance(module, (BasicBlock, Bottleneck)):
            module.drop_block = nn.Dropout2d(rate)


class PatchDropout(nn.Module):
    """Leave out patches of each image while training (arXiv 2208.07220, 2212.00794).

    The tokens that stay are drawn evenly without replacement, stand in random order (timm's) and
    are not rescaled; at least one stays.

    Parameters
    ----------
    rate : float or (float, float)
        Part of the patches that is left out, in [0, 1); of two, one between them is drawn for each
        batch (the paper's regularising variant: 0 to 0.5).
    n_prefix_tokens : int
        Tokens before the patches, which stay.

    Raises
    ------
    SpecError
        If a rate is outside [0, 1), or the second is below the first.
    """

    def __init__(self, rate: float | Sequence[float], n_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.n_prefix_tokens = n_prefix_tokens
        low, high = (rate, rate) if isinstance(rate, (int, float)) else rate
        if not 0 <= low <= high < 1:
            raise SpecError(
                f"patch_drop_rate is {rate!r}; it may be one rate from 0 to below 1, or two that "
                "rise"
            )
        self.low, self.high = float(low), float(high)

    def keep(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of x [image, token, d_model] that stay, and their numbers.

        Returns
        -------
        tokens : Tensor
            [image, kept, d_model], prefix tokens first.
        kept : Tensor or None
            Numbers of the patches [image, kept]; None if all stay, in their order.
        """
        n_patches, rate = x.shape[1] - self.n_prefix_tokens, self._rate()
        # 100 patches at a rate of 0.9 leave 9.999…; a part of a patch is rounded down as in timm
        n_kept = max(1, int(n_patches * (1 - rate) + 1e-6))
        if not self.training or n_kept == n_patches:
            return x, None
        exact = 1 - (n_kept + 0.5) / n_patches  # at which timm keeps just so many
        tokens, kept = patch_dropout_forward(x, exact, self.n_prefix_tokens, False, True)
        return tokens, kept

    def _rate(self) -> float:
        if not self.training or self.low == self.high:
            return self.low
        # from the CPU's generator: the number of tokens has to be known here anyway
        return self.low + (self.high - self.low) * float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens that stay."""
        return self.keep(x)[0]

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"{self.low}" if self.low == self.high else f"{self.low}…{self.high}"
