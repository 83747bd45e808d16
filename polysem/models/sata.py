"""SATA: many small attention weights together weigh a lot; this mixer makes them smaller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.mixers import Softmax

__all__ = ["Sata"]

_EPS = 1e-6


class Sata(Softmax):
    """Softmax attention whose trivial weights are squared and rescaled (arXiv 2210.12333).

    In each row of the pattern A the weights up to ``threshold · max`` are trivial. With S their
    sum, ``a`` becomes ``strength · a² / (S + 1e-6)``; the others stay as they are. Rows then sum to
    less than 1, and nothing is renormalised. The same in training and evaluation; as in the
    official code, which squares.

    The pattern has to be computed, so attention is never fused. In a B-cos network it depends on
    queries and keys alone and is as constant in explanation mode as before: explanations stay
    complete.

    Parameters
    ----------
    n_heads, d_head, **options
        As in :class:`~polysem.models.mixers.Softmax`.
    threshold : float
        In [0, 1); 0 leaves attention as it was.
    strength : float
        Initial value of the parameter `strength`, one number for the layer; it learns, with no
        bounds.

    Raises
    ------
    SpecError
        If the threshold is outside [0, 1).
    """

    is_softmax = False

    def __init__(
        self,
        n_heads: int,
        d_head: int,
        *,
        threshold: float = 0.1,
        strength: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(n_heads, d_head, **options)
        if not 0 <= threshold < 1:
            raise SpecError(f"the threshold of SATA is {threshold!r}; it may be 0 to below 1")
        self.threshold, self.initial = threshold, strength
        self.strength = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to the initial strength."""
        nn.init.constant_(self.strength, self.initial)

    def pattern(self, scores: Tensor) -> Tensor:
        """Return the pattern with its trivial weights made smaller [image, head, query, key]."""
        full = scores.softmax(dim=-1)
        trivial = full <= self.threshold * full.amax(dim=-1, keepdim=True)
        total = (full * trivial).sum(dim=-1, keepdim=True)
        return torch.where(trivial, self.strength * full.square() / (total + _EPS), full)

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
        """Return what the heads write, always by way of the pattern."""
        return self.unfused(q, k, v, bias, drop)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"threshold={self.threshold}, strength={self.initial}"
