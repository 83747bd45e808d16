"""Poisson bootstrap inside the stream: how far statistics would move on other images.

Each replicate counts each image as often as a Poisson draw of mean 1 says (Chamandy et al. 2012,
Estimating uncertainty for massive data streams), and the draw is a function of the image's key
and the replicate alone: shards and order cannot change it, so that replicates merge as exactly as
the statistics themselves.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from polysem.probe.accumulators import Accumulator

__all__ = ["BootstrapMeans", "poisson_weights"]

# Past this the chance is below 2**-53, the resolution of the uniform draw.
_MOST = 18


def poisson_weights(hashes: Tensor, n_replicates: int) -> Tensor:
    """Return how often each replicate counts each image, float64 [replicate, image].

    Parameters
    ----------
    hashes : Tensor
        int64 [image] from `image_hash`.
    n_replicates : int
        Rows; more of them do not change the first.
    """
    keys = hashes.cpu().numpy().astype(np.uint64)[None]
    replicates = np.arange(1, n_replicates + 1, dtype=np.uint64)[:, None]
    bits = _mix(keys + replicates * np.uint64(0x9E3779B97F4A7C15))
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    steps = poisson.cdf(np.arange(_MOST), 1.0)
    weights = np.searchsorted(steps, uniform, side="right").astype(np.float64)
    return torch.from_numpy(weights).to(hashes.device)


def _mix(bits: np.ndarray) -> np.ndarray:
    """Return well-mixed 64-bit numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


class BootstrapMeans(Accumulator):
    """Means of each unit's activation under each replicate, overall or class by class.

    Parameters
    ----------
    n_replicates, n_classes, n_tails, n_units : int
        Sizes of the state; one class for all images alike.
    device : torch.device or str
        Where the activations are.
    """

    _names = ("sums", "weights")

    def __init__(
        self,
        n_replicates: int,
        n_classes: int,
        n_tails: int,
        n_units: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        size = (n_replicates, n_classes, n_tails, n_units)
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)
        self.weights = torch.zeros(n_replicates, n_classes, dtype=torch.float64, device=device)

    def update(self, values: Tensor, weights: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch [tail, image, unit] with weights [replicate, image] and classes [image]."""
        n_classes = self.weights.shape[1]
        if labels is None or n_classes == 1:
            labels = torch.zeros(values.shape[1], dtype=torch.int64, device=values.device)
        hits = torch.nn.functional.one_hot(labels, n_classes).double()  # [image, class]
        chosen = torch.einsum("ri,ic->rci", weights, hits)
        self.sums += torch.einsum("rci,tiu->rctu", chosen, values.double())
        self.weights += chosen.sum(-1)

    def merge(self, other: BootstrapMeans) -> None:
        """Add what another instance has seen."""
        self.sums = self.sums + other.sums
        self.weights = self.weights + other.weights

    def class_means(self) -> Tensor:
        """Return [replicate, class, tail, unit]; NaN where a replicate has no image of a class."""
        return self.sums / self.weights[..., None, None]

    def means(self) -> Tensor:
        """Return the mean over all images [replicate, tail, unit]."""
        return self.sums.sum(1) / self.weights.sum(1)[:, None, None]
