"""AttnScale and FeatScale: against the low-pass filter that deep stacks of attention become.

Wang et al., Anti-Oversmoothing in Deep Vision Transformers, arXiv 2203.05962. Both split what they
get into its mean over tokens and the rest, and learn how much of each to keep.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polysem.models.mixers import Softmax

__all__ = ["AttnScale", "FeatScale"]


class AttnScale(Softmax):
    """Softmax attention whose pattern is moved away from the plain mean over tokens.

    With J / N the pattern that reads every token alike, A becomes ``J/N + (1 + ω)(A − J/N)``, ω for
    each head, at first 0. The pattern need not exist for that: the heads write
    ``(1 + ω) · softmax(…) v − ω · mean v``, and attention stays fused. N counts all tokens that a
    query may see. The same in training and evaluation.

    Rows sum to 1, but weights can be negative. In a B-cos network ω is a constant and the mean is
    linear in the values: explanations stay complete.

    Parameters
    ----------
    n_heads, d_head, **options
        As in :class:`~polysem.models.mixers.Softmax`.

    Attributes
    ----------
    strength : nn.Parameter
        ω [head].
    """

    is_softmax = False

    def __init__(
        self,
        n_heads: int,
        d_head: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(n_heads, d_head, **options)
        self.strength = nn.Parameter(torch.empty(n_heads, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to plain attention."""
        nn.init.zeros_(self.strength)

    def pattern(self, scores: Tensor) -> Tensor:
        """Return ``A + ω (A − J/N)`` [image, head, query, key]; keys at −∞ do not count in N."""
        full = scores.softmax(dim=-1)
        seen = (~scores.isneginf()).to(full.dtype)
        even = seen / seen.sum(dim=-1, keepdim=True)
        return full + self.strength[:, None, None] * (full - even)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        *,
        drop: nn.Dropout,
        fused: bool,
        masked: bool = False,
    ) -> Tensor:
        """Return what the heads write, in closed form unless weights are dropped or masked."""
        if not fused or masked or (drop.training and drop.p > 0):
            return self.unfused(q, k, v, bias, drop)
        z = super().forward(q, k, v, bias, drop=drop, fused=True)
        return z + self.strength[:, None, None] * (z - v.mean(dim=2, keepdim=True))


class FeatScale(nn.Module):
    """Scale the mean over tokens and the rest of what attention adds to the residual stream.

    ``(1 + s) ⊙ mean + (1 + t) ⊙ (x − mean)``, s and t for each feature, at first 0. The single form
    of the paper's formula; the official DeiT code adds the correction twice. It is linear, so
    that explanations of a B-cos network stay complete.

    Parameters
    ----------
    d_model : int

    Attributes
    ----------
    low, high : nn.Parameter
        s and t [d_model].
    """

    def __init__(
        self,
        d_model: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.high = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to the identity."""
        nn.init.zeros_(self.low)
        nn.init.zeros_(self.high)

    def forward(self, x: Tensor) -> Tensor:
        """Scale x [image, token, d_model]."""
        mean = x.mean(dim=1, keepdim=True)
        return x + self.low * mean + self.high * (x - mean)
