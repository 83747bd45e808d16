"""How attention turns queries, keys and values into what its heads write: the plain way.

A mixer is the part of an attention layer between its projections; `attention` has the layers. Each
paper that mixes tokens in another way is a subclass of :class:`Softmax`, one class a file, and
works in standard and B-cos layers alike. A mixer may skip the pattern (fused attention, closed
forms), but what it gives is always ``read(pattern(scores(q, k, bias)), v)``, which is what hooks
are shown.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Softmax"]


class Softmax(nn.Module):
    """``softmax(q kᵀ / √d_head + bias) v`` (Vaswani et al. 2017, arXiv 1706.03762).

    Parameters
    ----------
    n_heads, d_head : int
    grid : (int, int), optional
        Rows and columns of patches in training, for mixers that know where tokens are.
    n_prefix_tokens : int
        Tokens before the patches, for these too.
    device, dtype
        Of the parameters, if there are any.
    """

    #: Whether the pattern is nothing but the softmax of the scores.
    is_softmax: bool = True
    #: Whether it needs every patch of the grid in its place, so that none can be left out.
    needs_grid: bool = False
    #: Whether something may be added to its logits: masks, positions.
    takes_bias: bool = True

    def __init__(
        self,
        n_heads: int,
        d_head: int,
        *,
        grid: tuple[int, int] | None = None,
        n_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_head
        self.grid, self.n_prefix_tokens = grid, n_prefix_tokens

    def bias(self, n_tokens: int) -> Tensor | None:
        """Return what it adds to the logits itself, [head, query, key], or None if nothing."""
        return None

    def scores(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """Return the logits [image, head, query, key] of q and k [image, head, token, d_head]."""
        scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return scores if bias is None else scores + bias

    def pattern(self, scores: Tensor) -> Tensor:
        """Return the weight of each key for each query [image, head, query, key]."""
        return scores.softmax(dim=-1)

    def read(self, pattern: Tensor, v: Tensor) -> Tensor:
        """Return what heads write [image, head, query, d_head]: values in the pattern's weights."""
        return pattern @ v

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
        """Return what the heads write [image, head, token, d_head].

        Parameters
        ----------
        q, k, v : Tensor
            [image, head, token, d_head].
        bias : Tensor or None
            Added to the logits; broadcasts to [image, head, query, key].
        drop : nn.Dropout
            Acts on the pattern.
        fused : bool
            Whether torch may skip the pattern.
        masked : bool
            Whether the bias has entries −∞.
        """
        if not fused:
            return self.unfused(q, k, v, bias, drop)
        rate = drop.p if drop.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)

    def unfused(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop: nn.Dropout
    ) -> Tensor:
        """Return the same by way of the pattern, which `drop` acts on and its hooks can read."""
        return self.read(drop(self.pattern(self.scores(q, k, bias))), v)
