"""Manhattan self-attention of RMT: patches that are farther apart see less of each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.mixers import Softmax
from polysem.models.positions import grid_of

__all__ = ["Manhattan"]


class Manhattan(Softmax):
    """Softmax attention that decays with the Manhattan distance of patches (arXiv 2309.11523).

    Each head multiplies its weights by ``γ^(|Δy| + |Δx|)`` before the softmax is normalised, which
    is to add ``log γ · distance`` to the logits (the official code; the paper's product,
    renormalised). ``γ = 1 − 2^−(start + spread · i / H)`` for head i of H. The same in training and
    evaluation. Class and register tokens, of which the paper has none, are at distance 0 from
    all: our choice. The official code also turns queries and keys by rotary angles and adds
    depthwise convolutions around attention; of these only `local` is here.

    Decomposed, a patch reads along its column what patches there read along their rows: the
    pattern is ``A_y[x; y, y'] · A_x[y'; x, x']``, two small softmaxes, and its cost grows with
    N^1.5. Its scores are the logarithm of the pattern. It takes no positions in the logits, no
    masks and no prefix tokens.

    In a B-cos network the distances only change the pattern, and `local` is linear without bias:
    explanations stay complete.

    Parameters
    ----------
    n_heads, d_head, grid, **options
        As in :class:`~polysem.models.mixers.Softmax`; the grid is needed.
    start, spread : float
        Of the decay: `start` of the first head, almost ``start + spread`` of the last (RMT-T: 2
        and 4). An infinite start is no decay.
    decomposed : bool
        Whether along rows and columns, one after the other.
    local : bool
        Whether to add a 5×5 depthwise convolution of the values (the paper's local enhancement),
        here without bias.

    Raises
    ------
    SpecError
        If there is no grid, the decay is not positive, or there are prefix tokens and the
        attention is decomposed.
    """

    log_decay: Tensor
    needs_grid = True

    def __init__(
        self,
        n_heads: int,
        d_head: int,
        *,
        grid: tuple[int, int] | None = None,
        start: float = 2.0,
        spread: float = 4.0,
        decomposed: bool = False,
        local: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(n_heads, d_head, grid=grid, **options)
        if grid is None:
            raise SpecError("Manhattan attention needs the grid of patches")
        if not (start > 0 and spread >= 0):
            raise SpecError(
                f"the decay of Manhattan attention has start={start!r} and spread={spread!r}; "
                "start must be above 0 and spread at least 0"
            )
        if decomposed and self.n_prefix_tokens:
            raise SpecError("decomposed Manhattan attention has no place for prefix tokens")
        self.trained, self.decomposed, self.takes_bias = grid, decomposed, not decomposed
        heads = torch.arange(n_heads, device=device, dtype=torch.float64) / n_heads
        log_decay = torch.log1p(-torch.exp2(-(start + spread * heads)))
        log_decay = log_decay.to(dtype or torch.get_default_dtype())
        self.register_buffer("log_decay", log_decay, persistent=False)
        self.local: nn.Conv2d | None = None
        if local:
            width = n_heads * d_head
            self.local = nn.Conv2d(
                width, width, 5, padding=2, groups=width, bias=False, device=device, dtype=dtype
            )

    def bias(self, n_tokens: int) -> Tensor | None:
        """Return ``log γ · distance`` [head, query, key]; None if decomposed."""
        if self.decomposed:
            return None
        rows, columns = (self._decay(side) for side in self._grid(n_tokens))
        both = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        prefix = self.n_prefix_tokens
        return F.pad(both.flatten(3).flatten(1, 2), (prefix, 0, prefix, 0))

    def _grid(self, n_tokens: int) -> tuple[int, int]:
        return grid_of(n_tokens - self.n_prefix_tokens, self.trained)

    def _decay(self, n: int) -> Tensor:
        """Return ``log γ · |i − j|`` [head, i, j] along one side."""
        place = torch.arange(n, device=self.log_decay.device)
        return self.log_decay[:, None, None] * (place[:, None] - place).abs()

    def scores(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """Return the logits [image, head, query, key]."""
        if not self.decomposed:
            return super().scores(q, k, bias)
        self._refuse(bias)
        rows, columns = self._grid(q.shape[2])
        q = torch.unflatten(q * q.shape[-1] ** -0.5, 2, (rows, columns))
        k = torch.unflatten(k, 2, (rows, columns))
        along_y = torch.einsum("ihyxd,ihkxd->ihyxk", q, k) + self._decay(rows)[:, :, None]
        along_x = torch.einsum("ihyxd,ihykd->ihyxk", q, k) + self._decay(columns)[:, None]
        log_y = along_y.log_softmax(-1)  # [image, head, y, x, key y]
        log_x = along_x.log_softmax(-1)  # [image, head, key y, x, key x]
        both = log_y[..., None] + rearrange(log_x, "i h ky x kx -> i h 1 x ky kx")
        return rearrange(both, "i h y x ky kx -> i h (y x) (ky kx)")

    def read(self, pattern: Tensor, v: Tensor) -> Tensor:
        """Return values in the pattern's weights, and what the convolution makes of them."""
        return self._with_local(super().read(pattern, v), v)

    def _with_local(self, z: Tensor, v: Tensor) -> Tensor:
        if self.local is None:
            return z
        prefix, (rows, columns) = self.n_prefix_tokens, self._grid(v.shape[2])
        maps = rearrange(v[:, :, prefix:], "i h (y x) d -> i (h d) y x", y=rows, x=columns)
        near = rearrange(self.local(maps), "i (h d) y x -> i h (y x) d", h=self.n_heads)
        return z + F.pad(near, (0, 0, prefix, 0))

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
        """Return what the heads write [image, head, token, d_head]."""
        if self.decomposed:
            self._refuse(bias)
            fused = fused and not (drop.training and drop.p > 0)
        if not fused:
            return self.unfused(q, k, v, bias, drop)
        if self.decomposed:
            return self._with_local(self._two_steps(q, k, v), v)
        return self._with_local(super().forward(q, k, v, bias, drop=drop, fused=True), v)

    def _two_steps(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, columns = self._grid(q.shape[2])
        for line, n in (("(i y) h x d", columns), ("(i x) h y d", rows)):  # rows come first
            lines = [rearrange(t, f"i h (y x) d -> {line}", y=rows, x=columns) for t in (q, k, v)]
            decay = self._decay(n)[None].to(q.dtype)
            read = F.scaled_dot_product_attention(lines[0], lines[1], lines[2], attn_mask=decay)
            v = rearrange(read, f"{line} -> i h (y x) d", y=rows, x=columns)
        return v

    def _refuse(self, bias: Tensor | None) -> None:
        if bias is not None:
            raise SpecError(
                "decomposed Manhattan attention takes no masks and no positions in its logits"
            )

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        decay = self.log_decay.exp()
        return f"γ={decay[0]:.4g}…{decay[-1]:.4g}, decomposed={self.decomposed}"
