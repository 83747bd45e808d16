"""Monosemanticity in one pass: sums of activations times embeddings, exact and mergeable.

The pairwise score of Pach et al. (arXiv 2504.02821) is a ratio of sums over images once the
unit's smallest and largest activations are known (see `polysem.analysis.monosemanticity` for the
closed form). Both are known at the end only, so the sums are kept of activations a - s, with s a
fixed number near the unit's values, and moved and stretched then:

    Σ ã e = (Σ (a - s) e - (m - s) Σ e) / (M - m),

with m and M the extremes. s is the unit's first activation: without it a large offset would leave
few digits of the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polysem.probe.accumulators import Accumulator

__all__ = ["EmbeddingSums"]


class EmbeddingSums(Accumulator):
    """What the monosemanticity score and the centroid of each unit need, in float64.

    Replicates of the bootstrap keep how far their sums lie from the sums themselves, in float32:
    an interval needs few digits, and these are most of the memory, ``4 R`` bytes for each entry
    of [tail, unit, dim].

    Parameters
    ----------
    n_tails, n_units, dim : int
        Sizes of the state.
    n_replicates : int, default 0
        Replicates of the bootstrap over images.
    device : torch.device or str
        Where the activations are.
    """

    _names = (
        "count", "shift", "min", "max", "a", "aa", "ae", "e",
        "w", "ww", "wa", "wwa", "wwaa", "we", "wae",
    )  # fmt: skip

    def __init__(
        self,
        n_tails: int,
        n_units: int,
        dim: int,
        *,
        n_replicates: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        def zeros(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        units, r = (n_tails, n_units), n_replicates
        self.count, self.e = zeros(), zeros(dim)
        self.shift = zeros(*units)
        self.min, self.max = zeros(*units) + torch.inf, zeros(*units) - torch.inf
        self.a, self.aa, self.ae = zeros(*units), zeros(*units), zeros(*units, dim)
        self.w, self.ww, self.we = zeros(r), zeros(r), zeros(r, dim)
        self.wa, self.wwa, self.wwaa = zeros(r, *units), zeros(r, *units), zeros(r, *units)
        self.wae = zeros(r, *units, dim, dtype=torch.float32)

    def update(self, values: Tensor, embeddings: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch.

        Parameters
        ----------
        values : Tensor
            Activations [tail, image, unit]; of a lower tail, their negatives.
        embeddings : Tensor
            [image, dim], any length; only directions count.
        weights : Tensor, optional
            [replicate, image] from `poisson_weights`.
        """
        if values.shape[1] == 0:
            return
        wide = values.double()
        if self.count == 0:
            self.shift = wide[:, 0].clone()
        wide = wide - self.shift[:, None]
        e = torch.nn.functional.normalize(embeddings.double(), dim=1, eps=0)
        square = wide * wide
        self.count += len(e)
        self.e += e.sum(0)
        self.min = torch.minimum(self.min, wide.amin(1))
        self.max = torch.maximum(self.max, wide.amax(1))
        self.a += wide.sum(1)
        self.aa += square.sum(1)
        self.ae += wide.transpose(1, 2) @ e
        if weights is None:
            return
        heavy = weights * weights
        self.w += weights.sum(1)
        self.ww += heavy.sum(1)
        self.we += weights @ e
        self.wa += torch.einsum("ri,tiu->rtu", weights, wide)
        self.wwa += torch.einsum("ri,tiu->rtu", heavy, wide)
        self.wwaa += torch.einsum("ri,tiu->rtu", heavy, square)
        narrow, e_narrow = wide.float().transpose(1, 2), e.float()
        for replicate, extra in zip(self.wae, (weights - 1).float(), strict=True):
            replicate += narrow @ (extra[:, None] * e_narrow)

    def merge(self, other: EmbeddingSums) -> None:
        """Add what another instance has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.load_state_dict({k: v.clone() for k, v in other.state_dict().items()})
            return
        d = other.shift - self.shift  # (a - shift) = (a - other's shift) + d
        self.min = torch.minimum(self.min, other.min + d)
        self.max = torch.maximum(self.max, other.max + d)
        self.aa = self.aa + other.aa + 2 * d * other.a + other.count * d * d
        self.a = self.a + other.a + other.count * d
        self.ae = self.ae + other.ae + d[..., None] * other.e
        if len(self.w):
            w, ww = other.w[:, None, None], other.ww[:, None, None]
            self.wwaa = self.wwaa + other.wwaa + 2 * d * other.wwa + ww * d * d
            self.wwa = self.wwa + other.wwa + ww * d
            self.wa = self.wa + other.wa + w * d
            extra = d[..., None] * (other.we - other.e)[:, None, None]
            self.wae = self.wae + other.wae + extra.float()
            self.w, self.ww, self.we = self.w + other.w, self.ww + other.ww, self.we + other.we
        self.count = self.count + other.count
        self.e = self.e + other.e

    def monosemanticity(self) -> Tensor:
        """Return the monosemanticity score [tail, unit], in [-1, 1], 1 the most monosemantic.

        NaN for a constant unit, and for one that a single image excites.
        """
        return self._score(
            self.ae - self.min[..., None] * self.e,
            self.a - self.count * self.min,
            self.aa - 2 * self.min * self.a + self.count * self.min**2,
        )

    def centroids(self) -> Tensor:
        """Return the embedding of what excites each unit, ``Σ ã e / Σ ã`` [tail, unit, dim]."""
        total = self.a - self.count * self.min
        total = torch.where(self.max > self.min, total, torch.nan)
        return (self.ae - self.min[..., None] * self.e) / total[..., None]

    def mean_embedding(self) -> Tensor:
        """Return the mean embedding of all images [dim], what every centroid has in common."""
        return self.e / self.count

    def replicates(self) -> Tensor:
        """Return the score under each replicate [replicate, tail, unit].

        An image that is counted twice makes no pair with itself, and the unit's extremes stay
        those of all images.
        """
        m = self.min
        found = torch.empty_like(self.wa)
        for r in range(len(found)):
            towards = self.ae + self.wae[r].double() - m[..., None] * self.we[r]
            found[r] = self._score(
                towards,
                self.wa[r] - self.w[r] * m,
                self.wwaa[r] - 2 * m * self.wwa[r] + self.ww[r] * m**2,
            )
        return found

    def _score(self, towards: Tensor, total: Tensor, squares: Tensor) -> Tensor:
        """Return the score from ``Σ w ã e``, ``Σ w ã`` and ``Σ w² ã²``, all times the range."""
        pairs = total**2 - squares
        # one image that stands out alone leaves rounding, no pair
        has_pairs = (self.max > self.min) & (pairs > 1e-12 * squares)
        pairs = torch.where(has_pairs, pairs, torch.nan)
        return ((towards**2).sum(-1) - squares) / pairs
