"""Scaled cosine attention of LipsFormer: attention that no input can make arbitrarily steep."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.mixers import Softmax
from polysem.models.scaling import wide

__all__ = ["Cosine"]


class Cosine(Softmax):
    """``ν softmax(τ q̂ k̂ᵀ + bias) v̂`` with ``û = u / √(‖u‖² + ε)`` (arXiv 2304.09856).

    Attention is fused, and the same in training and evaluation. What a head writes is no longer
    than ν; logits lie within ±τ of the bias. The official code leaves values as they are, which
    is ``normalize_values=False`` with ``eps=1e-24``, and has no ν; then there is no Lipschitz
    bound that holds everywhere.

    In explanation mode of a B-cos network the norms of values are constants, as the pattern is:
    explanations stay complete.

    Parameters
    ----------
    n_heads, d_head, **options
        As in :class:`~polysem.models.mixers.Softmax`.
    tau, nu : float
        τ and ν, positive constants. The paper's values are not known to us; τ is the code's.
    eps : float
        ε, positive. The Lipschitz bound grows as ``1 / √ε``.
    normalize_values : bool
        Whether values are normalised too.

    Raises
    ------
    SpecError
        If a number is not positive.
    """

    explaining: bool = False

    def __init__(
        self,
        n_heads: int,
        d_head: int,
        *,
        tau: float = 10.0,
        nu: float = 1.0,
        eps: float = 1e-6,
        normalize_values: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(n_heads, d_head, **options)
        for name, value in (("tau", tau), ("nu", nu), ("eps", eps)):
            if not value > 0:
                raise SpecError(f"{name} of cosine attention is {value!r}; it must be positive")
        self.tau, self.nu, self.eps = tau, nu, eps
        self.normalize_values = normalize_values

    def scores(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``τ q̂ k̂ᵀ + bias`` [image, head, query, key]."""
        scores: Tensor = self.tau * self._unit(q) @ self._unit(k).transpose(-2, -1)
        return scores if bias is None else scores + bias

    def values(self, v: Tensor) -> Tensor:
        """Return what the pattern weighs, ``ν v̂`` [image, head, token, d_head]."""
        return self.nu * (self._unit(v, frozen=self.explaining) if self.normalize_values else v)

    def read(self, pattern: Tensor, v: Tensor) -> Tensor:
        """Return what heads write [image, head, query, d_head]."""
        return pattern @ self.values(v)

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
        """Return what the heads write, as :class:`~polysem.models.mixers.Softmax` does."""
        if not fused:
            return self.unfused(q, k, v, bias, drop)
        return F.scaled_dot_product_attention(
            self._unit(q),
            self._unit(k),
            self.values(v),
            attn_mask=bias,
            dropout_p=drop.p if drop.training else 0.0,
            scale=self.tau,
        )

    def _unit(self, u: Tensor, *, frozen: bool = False) -> Tensor:
        full = wide(u)
        scale = (full.square().sum(-1, keepdim=True) + self.eps).rsqrt()
        return (full * (scale.detach() if frozen else scale)).to(u.dtype)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return (
            f"tau={self.tau:g}, nu={self.nu:g}, eps={self.eps:g}, "
            f"normalize_values={self.normalize_values}"
        )
