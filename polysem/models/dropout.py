"""Parts of a network that are left out at random while it learns, beyond torch's dropout.

All of them draw from torch's generator of the device, whose state a training keeps, and do
nothing in evaluation mode.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from polysem.errors import SpecError

__all__ = ["DropHead", "check_drop_head", "set_drop_head_rate"]


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

    def __init__(self, n_heads: int, rate: float | Literal["half"] = "half") -> None:
        super().__init__()
        rate = check_drop_head(rate)
        self.n_heads, self.exactly_half = n_heads, rate == "half"
        value = float("nan") if rate == "half" else rate
        self.register_buffer("rate", torch.tensor(value), persistent=False)

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
