"""Streaming statistics of unit activations: exact, mergeable, and no larger for more images.

Each accumulator has ``update(...)`` for a batch, ``merge(other)`` for another part of the same
data, and ``state_dict()`` / ``load_state_dict()``. State lives where the activations are, and
nothing here waits for a GPU. Activations arrive already pooled over tokens, as float32
[pool, image, unit]; the pools of a site are named by the recorder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Accumulator", "ClassSums", "ImageSample", "Moments", "State", "image_hash", "rank_error",
]  # fmt: skip

State: TypeAlias = dict[str, Tensor]


class Accumulator:
    """Base of the accumulators: state in named tensors, the same names in every instance."""

    _names: tuple[str, ...] = ()

    def state_dict(self) -> State:
        """Return the state by name; tensors are shared, not copied."""
        return {name: getattr(self, name) for name in self._names}

    def load_state_dict(self, state: State) -> None:
        """Take over a state that `state_dict` gave."""
        for name in self._names:
            setattr(self, name, state[name])


class Moments(Accumulator):
    """Count, central moments up to the fourth, extremes and signs of each unit.

    Central moments are kept in float64 and joined by the pairwise update of Chan et al. (1979),
    extended to the fourth order by Pébay (SAND2008-6212), which does not lose digits to a large
    mean as raw power sums would.

    Parameters
    ----------
    n_pools, n_units : int
        Sizes of the state [pool, unit].
    device : torch.device or str
        Where the activations are.
    """

    _names = ("count", "mean", "m2", "m3", "m4", "min", "max", "abs_sum", "positive")

    def __init__(self, n_pools: int, n_units: int, *, device: torch.device | str = "cpu") -> None:
        def zeros() -> Tensor:
            return torch.zeros(n_pools, n_units, dtype=torch.float64, device=device)

        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean, self.m2, self.m3, self.m4 = zeros(), zeros(), zeros(), zeros()
        self.abs_sum, self.positive = zeros(), zeros()
        self.min = torch.full((n_pools, n_units), torch.inf, device=device)
        self.max = torch.full((n_pools, n_units), -torch.inf, device=device)

    def update(self, values: Tensor) -> None:
        """Add a batch of pooled activations [pool, image, unit]."""
        if values.shape[1] == 0:
            return
        wide = values.double()
        mean = wide.mean(1)
        off = wide - mean[:, None]
        square = off * off
        self._join(
            torch.full((), values.shape[1], dtype=torch.float64, device=values.device),
            mean,
            square.sum(1),
            (square * off).sum(1),
            (square * square).sum(1),
        )
        self.abs_sum += wide.abs().sum(1)
        self.positive += (values > 0).sum(1)
        self.min = torch.minimum(self.min, values.amin(1))
        self.max = torch.maximum(self.max, values.amax(1))

    def merge(self, other: Moments) -> None:
        """Add what another instance has seen."""
        if other.count == 0:
            return
        self._join(other.count, other.mean, other.m2, other.m3, other.m4)
        self.abs_sum = self.abs_sum + other.abs_sum
        self.positive = self.positive + other.positive
        self.min = torch.minimum(self.min, other.min)
        self.max = torch.maximum(self.max, other.max)

    def _join(self, count: Tensor, mean: Tensor, m2: Tensor, m3: Tensor, m4: Tensor) -> None:
        n_a, n_b = self.count, count
        n = n_a + n_b
        d = mean - self.mean
        d_n = d / n
        self.m4 = (
            self.m4 + m4
            + d * d_n**3 * n_a * n_b * (n_a * n_a - n_a * n_b + n_b * n_b)
            + 6 * d_n**2 * (n_a * n_a * m2 + n_b * n_b * self.m2)
            + 4 * d_n * (n_a * m3 - n_b * self.m3)
        )  # fmt: skip
        self.m3 = (
            self.m3 + m3
            + d * d_n**2 * n_a * n_b * (n_a - n_b)
            + 3 * d_n * (n_a * m2 - n_b * self.m2)
        )  # fmt: skip
        self.m2 = self.m2 + m2 + d * d_n * n_a * n_b
        self.mean = self.mean + d_n * n_b
        self.count = n

    def variance(self) -> Tensor:
        """Return the population variance [pool, unit], activation units squared."""
        return self.m2 / self.count

    def skewness(self) -> Tensor:
        """Return the skewness [pool, unit]; NaN for a constant unit."""
        return self._nan_if_constant(self.m3 / self.count / self.variance() ** 1.5)

    def kurtosis(self) -> Tensor:
        """Return the excess kurtosis [pool, unit], 0 for a normal distribution; NaN if constant."""
        return self._nan_if_constant(self.m4 / self.count / self.variance() ** 2 - 3)

    def sparsity(self) -> Tensor:
        """Return Hoyer's sparsity of activations over images [pool, unit].

        ``(sqrt(n) - sum|a| / sqrt(sum a²)) / (sqrt(n) - 1)`` lies in [0, 1]: 1 when a single image
        activates the unit, 0 when all do equally; NaN for a unit that is always 0 (Hoyer 2004,
        JMLR 5:1457).
        """
        root = self.count.sqrt()
        norm = (self.m2 + self.count * self.mean**2).sqrt()
        return (root - self.abs_sum / norm) / (root - 1)

    def positive_share(self) -> Tensor:
        """Return the share of images with a positive activation [pool, unit], in [0, 1]."""
        return self.positive / self.count

    def _nan_if_constant(self, ratio: Tensor) -> Tensor:
        return torch.where(self.min == self.max, torch.nan, ratio)


class ClassSums(Accumulator):
    """Sum of pooled activations per class, float64 [class, pool, unit].

    Parameters
    ----------
    n_classes, n_pools, n_units : int
        Sizes of the state.
    device : torch.device or str
        Where the activations are.
    """

    _names = ("sums", "count")

    def __init__(
        self, n_classes: int, n_pools: int, n_units: int, *, device: torch.device | str = "cpu"
    ) -> None:
        size = (n_classes, n_pools, n_units)
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)
        self.count = torch.zeros(n_classes, dtype=torch.int64, device=device)

    def update(self, values: Tensor, labels: Tensor) -> None:
        """Add a batch [pool, image, unit] with its class indices [image]."""
        self.sums.index_add_(0, labels, values.transpose(0, 1).double())
        self.count += torch.bincount(labels, minlength=len(self.count))

    def merge(self, other: ClassSums) -> None:
        """Add what another instance has seen."""
        self.sums = self.sums + other.sums
        self.count = self.count + other.count


def image_hash(keys: Sequence[str]) -> np.ndarray:
    """Return a 63-bit hash of each image key, int64 [image], the same everywhere and always."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(d, "big") >> 1 for d in digests], dtype=np.int64)


class ImageSample(Accumulator):
    """Pooled activations of a uniform random sample of images, the same images for every unit.

    The sample is the m images whose keys hash lowest (bottom-k sampling), so that it depends on
    the set of images alone and shards merge exactly. It gives quantiles: exact up to m images;
    beyond, every quantile's rank error is below ``sqrt(ln(2/δ) / 2m)`` at once with probability
    1 - δ (Dvoretzky-Kiefer-Wolfowitz with Massart's constant). Because units share images, it
    also gives joint statistics, such as correlations between units.

    Parameters
    ----------
    m : int
        Number of images to keep.
    n_pools, n_units : int
        Sizes of the state [pool, sample, unit].
    device : torch.device or str
        Where the activations are.
    """

    _names = ("values", "hashes", "images")
    _EMPTY = np.iinfo(np.int64).max

    def __init__(
        self, m: int, n_pools: int, n_units: int, *, device: torch.device | str = "cpu"
    ) -> None:
        self.values = torch.full((n_pools, m, n_units), torch.nan, device=device)
        # who is in the sample is decided on the host, where image keys are known
        self.hashes = torch.full((m,), self._EMPTY, dtype=torch.int64)
        self.images = torch.zeros(m, dtype=torch.int64)

    def update(self, values: Tensor, images: Tensor, hashes: Tensor) -> None:
        """Offer a batch [pool, image, unit] with image indices and hashes, int64 on the host."""
        if not bool((hashes < self.hashes.max()).any()):
            return
        merged = torch.cat([self.hashes, hashes])
        chosen = merged.argsort(stable=True)[: len(self.hashes)]
        rows = chosen[chosen >= len(self.hashes)] - len(self.hashes)
        stays = torch.zeros(len(self.hashes), dtype=torch.bool)
        stays[chosen[chosen < len(self.hashes)]] = True
        slots = (~stays).nonzero()[:, 0]
        self.hashes[slots], self.images[slots] = hashes[rows], images[rows]
        device = values.device
        self.values[:, slots.to(device)] = values[:, rows.to(device)].float()

    def merge(self, other: ImageSample) -> None:
        """Keep the lowest hashes of both; they must not have seen the same image."""
        taken = other.hashes != self._EMPTY
        self.update(
            other.values[:, taken.to(other.values.device)], other.images[taken], other.hashes[taken]
        )

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Return image indices [sample], ascending, and their values [pool, sample, unit]."""
        taken = (self.hashes != self._EMPTY).nonzero()[:, 0]
        order = taken[self.images[taken].argsort()]
        return self.images[order], self.values[:, order.to(self.values.device)]


def rank_error(n_sampled: int, n_images: int, *, delta: float = 0.01) -> float:
    """Return the stated rank error of quantiles read off a sample, as a share of the images.

    >>> rank_error(1024, 1000), round(rank_error(1024, 10_000), 3)
    (0.0, 0.051)
    """
    if n_images <= n_sampled:
        return 0.0
    return float(np.sqrt(np.log(2 / delta) / (2 * n_sampled)))
