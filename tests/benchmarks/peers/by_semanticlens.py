"""The same work by semanticlens, as far as it goes: exemplars, their scores and labels."""

from __future__ import annotations

import torch
from inputs import mlp_sites
from semanticlens.component_visualization.activation_caching import ActMax, ActMaxCache
from semanticlens.lens import _probe
from semanticlens.scores import clarity_score
from torch import Tensor, nn

__all__ = ["Search", "clarity", "label_by_mean", "recorder"]


class _Cache:
    """Its caches of exemplars: one of neurons, one of heads, as a cache has one aggregation."""

    def __init__(self, model: nn.Module, k: int) -> None:
        n_heads = model.blocks[0].attn.num_heads

        def patch_maximum(activation: Tensor) -> Tensor:
            return activation[:, 1:].amax(1).cpu()

        def head_length(activation: Tensor) -> Tensor:
            z = activation[:, 1:].unflatten(-1, (n_heads, -1))
            return torch.linalg.vector_norm(z, dim=-1).mean(1).cpu()

        self.model = model
        # the identity before the projection gives the heads' outputs side by side
        heads = [f"blocks.{i}.attn.norm" for i in range(len(model.blocks))]
        self.neurons = ActMaxCache(mlp_sites(model), n_collect=k, aggregation_fn=patch_maximum)
        self.heads = ActMaxCache(heads, n_collect=k, aggregation_fn=head_length)

    def batch(self, images: Tensor) -> None:
        with (
            torch.inference_mode(),
            self.neurons.hook_context(self.model),
            self.heads.hook_context(self.model),
        ):
            self.model(images)

    def result(self) -> dict[str, Tensor]:
        return {"top_image": torch.cat([cache.sample_ids for cache in self.neurons])}


def recorder(model: nn.Module, k: int) -> _Cache:
    """Return its caches of exemplars."""
    return _Cache(model, k)


class Search:
    """Its collection of the highest activations."""

    def __init__(self, n_units: int, k: int) -> None:
        self.kept = ActMax(k, n_units)

    def update(self, values: Tensor, start: int) -> None:
        """Offer a batch [image, unit] whose first image is number `start`."""
        self.kept.update(values, torch.arange(start, start + len(values)))

    def result(self) -> Tensor:
        """Return image numbers [unit, rank]."""
        return self.kept.sample_ids


def label_by_mean(exemplars: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """Return the best concept of each unit by the mean embedding of its exemplars."""
    concepts = images[exemplars].mean(1)
    return _probe(texts, concepts).argmax(0)


def clarity(exemplars: Tensor) -> Tensor:
    """Return its clarity [unit]."""
    return clarity_score(exemplars)
