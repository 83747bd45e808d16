"""One site during a probe: from hooked activations to its part of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from polysem.errors import NonFiniteError, RunError
from polysem.probe.accumulators import Accumulator, ClassSums, ImageSample, Moments, State
from polysem.probe.bootstrap import BootstrapMeans
from polysem.probe.embedding_sums import EmbeddingSums
from polysem.probe.exemplars import Exemplars
from polysem.probe.pooling import Pooled, pool_activation, pool_names, square_grid, tail_names
from polysem.sites import Site
from polysem.store.schema import QUANTILES, UNITS, dataset, ranking_pool

__all__ = ["Batch", "SiteRecorder"]

#: Most classes whose means are kept under each replicate of the bootstrap.
_MOST_CLASSES = 100


@dataclass(frozen=True)
class Batch:
    """The images of one forward pass.

    Attributes
    ----------
    images : Tensor
        Index of each image in the data, int64 [image], where the activations are.
    images_host, hashes : Tensor
        The same indices, and the images' hashes, int64 [image] on the host.
    labels : Tensor or None
        Class indices, int64 [image], where the activations are.
    weights : Tensor or None
        How often each replicate of the bootstrap counts each image, [replicate, image].
    """

    images: Tensor
    images_host: Tensor
    hashes: Tensor
    labels: Tensor | None
    weights: Tensor | None = None


@dataclass
class SiteRecorder:
    """Fold the activations of one site into statistics, batch by batch.

    Attributes
    ----------
    site : Site
        What is recorded.
    signed : bool
        Whether units fire in both directions.
    n_prefix_tokens, has_class_token : int, bool
        Tokens before the patches, and whether the first is a class token.
    n_classes : int
        Classes of the data; 0 for unlabelled data.
    top_k, sample : int
        Exemplars per unit and tail; images in the sample.
    grid : tuple of int or None
        Patch grid of a transformer.
    n_replicates : int
        Replicates of the bootstrap over images.
    """

    site: Site
    signed: bool
    n_prefix_tokens: int
    has_class_token: bool
    n_classes: int
    top_k: int
    sample: int
    grid: tuple[int, int] | None = None
    n_replicates: int = 0
    parts: dict[str, Any] = field(default_factory=dict)
    latest: Tensor | None = None

    def __post_init__(self) -> None:
        self.pools = pool_names(self.site, signed=self.signed, has_class_token=self.has_class_token)
        self.tails = tail_names(self.site, signed=self.signed)

    def update(self, activation: Tensor, batch: Batch) -> None:
        """Add the activation of one batch, as the site's dims say.

        The pooled values stay in `latest` until the next batch.
        """
        pooled = pool_activation(
            self.site, activation, self.pools, n_prefix_tokens=self.n_prefix_tokens
        )
        if not self.parts:
            self._allocate_for(pooled)
        values = self.latest = pooled.values
        self.parts["moments"].update(values)
        self.parts["sample"].update(values, batch.images_host, batch.hashes)
        if batch.labels is not None:
            self.parts["class_sums"].update(values, batch.labels)
        if batch.weights is not None:
            self.parts["bootstrap"].update(self._faces(values), batch.weights, batch.labels)
        for tail in self.tails:
            pool = self.pools.index(ranking_pool(self.pools, tail))
            self.parts[tail].update(values[pool], batch.images, pooled.maps)

    def embed(self, embeddings: Tensor, batch: Batch) -> None:
        """Add the embeddings [image, dim] of the images that `update` saw last."""
        if self.latest is None:
            return
        faces = self._faces(self.latest)
        if "embedding_sums" not in self.parts:
            self._allocate_sums(faces.shape[2], embeddings.shape[1], faces.device)
        self.parts["embedding_sums"].update(faces, embeddings, batch.weights)

    def _faces(self, values: Tensor) -> Tensor:
        """Return the activation of each tail [tail, image, unit]: a lower one is turned over."""
        return torch.stack(
            [
                values[self.pools.index(ranking_pool(self.pools, tail))]
                * (-1 if tail == "lower" else 1)
                for tail in self.tails
            ]
        )

    def _allocate_for(self, pooled: Pooled) -> None:
        n_positions = 0 if pooled.maps is None else pooled.maps.shape[2]
        if pooled.grid is not None:
            self.grid = pooled.grid
        elif self.grid is None or self.grid[0] * self.grid[1] != n_positions:
            self.grid = square_grid(n_positions)
        self._allocate(pooled.values.shape[2], n_positions, pooled.values.device)

    def _allocate_sums(self, n_units: int, dim: int, device: torch.device) -> None:
        self.parts["embedding_sums"] = EmbeddingSums(
            len(self.tails), n_units, dim, n_replicates=self.n_replicates, device=device
        )

    def _allocate(self, n_units: int, n_positions: int, device: torch.device) -> None:
        n_pools = len(self.pools)
        self.parts["moments"] = Moments(n_pools, n_units, device=device)
        self.parts["sample"] = ImageSample(self.sample, n_pools, n_units, device=device)
        if self.n_classes:
            self.parts["class_sums"] = ClassSums(self.n_classes, n_pools, n_units, device=device)
        if self.n_replicates:
            # with many classes their means under each replicate would outgrow all else
            n_classes = self.n_classes if 0 < self.n_classes <= _MOST_CLASSES else 1
            self.parts["bootstrap"] = BootstrapMeans(
                self.n_replicates, n_classes, len(self.tails), n_units, device=device
            )
        for tail in self.tails:
            self.parts[tail] = Exemplars(
                self.top_k,
                n_units,
                n_positions,
                lower=tail == "lower",
                only_firing=not self.signed,
                device=device,
            )

    def check_finite(self) -> None:
        """Stop if any activation so far was NaN or infinite (waits for the device).

        Raises
        ------
        NonFiniteError
            Naming the site and the first such unit.
        """
        if not self.parts:
            return
        moments: Moments = self.parts["moments"]
        bad = ~(moments.min.isfinite() & moments.max.isfinite()).all(0)
        if bool(bad.any()):
            n_bad, first = int(bad.sum()), int(bad.nonzero()[0, 0])
            raise NonFiniteError(
                f"NaN or infinite activations at {self.site.name}, unit {first} "
                f"({n_bad} of {len(bad)} units of the site): the weights or the precision are "
                "at fault; try --precision fp32"
            )

    def merge(self, other: SiteRecorder) -> None:
        """Add what a recorder of the same site has seen of other images of the same data."""
        if not other.parts:
            return
        if not self.parts:
            self.parts, self.grid = other.parts, other.grid
            return
        for name, part in self.parts.items():
            part.merge(other.parts[name])

    def empty(self) -> SiteRecorder:
        """Return a recorder of the same site that has seen nothing."""
        return replace(self, parts={}, latest=None)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the state of every accumulator by name."""
        parts: Mapping[str, Accumulator] = self.parts
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(
        self,
        state: Mapping[str, State],
        grid: tuple[int, int] | None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take over what `state_dict` gave of a recorder of the same site, and its `grid`."""
        if not state:
            return
        place = torch.device(device)
        self.grid = grid
        n_units, n_positions = (
            state["moments"]["mean"].shape[1],
            state[self.tails[0]]["maps"].shape[2],
        )
        self._allocate(n_units, n_positions, place)
        if "embedding_sums" in state:
            self._allocate_sums(n_units, state["embedding_sums"]["e"].shape[0], place)
        for name, part in self.parts.items():
            part.load_state_dict(
                {
                    # who is in the sample is decided on the host
                    key: value if key in ("hashes", "images") else value.to(place)
                    for key, value in state[name].items()
                }
            )

    def result(self, *, weight_cosine: tuple[Tensor, float] | None = None) -> xr.Dataset:
        """Return the statistics of all units in the run's layout.

        Parameters
        ----------
        weight_cosine : (Tensor, float), optional
            How much the units share directions in their weights [unit], and by chance.

        Raises
        ------
        RunError
            If the network never reached the site.
        """
        if not self.parts:
            raise RunError(
                f"the forward pass never reached {self.site.name}; leave it out with --sites"
            )
        moments: Moments = self.parts["moments"]
        images, values = self.parts["sample"].sorted()
        arrays: dict[str, Any] = {
            "count": int(moments.count),
            "mean": moments.mean,
            "variance": moments.variance(),
            "skewness": moments.skewness(),
            "kurtosis": moments.kurtosis(),
            "min": moments.min,
            "max": moments.max,
            "sparsity": moments.sparsity(),
            "positive_share": moments.positive_share(),
            "quantile": _quantiles(values),
            "dead": (moments.min == moments.max).all(0),
            "sample_image": images,
            "sample_value": values,
        }
        if self.n_classes:
            arrays["class_sum"] = self.parts["class_sums"].sums.transpose(0, 1)
            arrays["class_count"] = self.parts["class_sums"].count
        arrays |= self._exemplars() | self._resampled()
        if weight_cosine is not None:
            arrays["weight_cosine"] = weight_cosine[0].float()
        coords = {"pool": list(self.pools), "q": list(QUANTILES), "tail": list(self.tails)}
        units = dataset(UNITS, {k: _numpy(v) for k, v in arrays.items()}, coords)
        if weight_cosine is not None:
            units["weight_cosine"].attrs["chance"] = weight_cosine[1]
        return units

    def _resampled(self) -> dict[str, Tensor]:
        """Return what embeddings and replicates give."""
        found: dict[str, Tensor] = {}
        sums: EmbeddingSums | None = self.parts.get("embedding_sums")
        if sums is not None:
            found["monosemanticity"] = sums.monosemanticity()
            found["centroid"] = sums.centroids().float()
            if self.n_replicates:
                found["replicate_monosemanticity"] = sums.replicates().float()
        means: BootstrapMeans | None = self.parts.get("bootstrap")
        if means is not None:
            found["replicate_mean"] = means.means().float()
            if means.sums.shape[1] > 1:
                found["replicate_class_mean"] = means.class_means().float()
        return found

    def _exemplars(self) -> dict[str, Tensor]:
        tails = [self.parts[tail].ranked() for tail in self.tails]
        values, images, positions, maps = (
            parts[0][None] if len(parts) == 1 else torch.stack(parts)
            for parts in zip(*tails, strict=True)
        )
        found = {
            "top_value": values,
            "top_image": images,
            "n_exemplars": (~values.isnan()).sum(-1),
        }
        if maps.shape[-1]:
            assert self.grid is not None
            found["top_y"] = (positions / self.grid[1]).floor()
            found["top_x"] = positions % self.grid[1]
            found["top_map"] = maps.unflatten(-1, self.grid)
        return found


def _quantiles(values: Tensor) -> np.ndarray:
    """Return quantiles [pool, q, unit] of a sample [pool, sample, unit]: values that occurred.

    The smallest value that at least a share q of the sample does not exceed; numpy's
    ``inverted_cdf`` by one sort, which is several times faster than its partitions.
    """
    ordered = np.sort(np.ascontiguousarray(values.cpu().numpy().swapaxes(1, 2)), axis=2)
    ranks = np.ceil(np.array(QUANTILES) * ordered.shape[2]).astype(int) - 1
    return ordered[:, :, np.maximum(ranks, 0)].swapaxes(1, 2)


def _numpy(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value
