"""What one writes without a toolkit: plain hooks, and published formulas as they are stated.

`Kept` is also the user's part of the work with toolkits that give activations and no statistics.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Kept", "Search", "label", "monosemanticity", "recorder"]


class Search:
    """The images that excite each unit most, by ``topk`` over those kept and each batch."""

    def __init__(self, n_units: int, k: int) -> None:
        self.values = torch.full((k, n_units), -torch.inf)
        self.images = torch.full((k, n_units), -1)

    def update(self, values: Tensor, start: int) -> None:
        """Offer a batch [image, unit] whose first image is number `start`."""
        images = torch.arange(start, start + len(values))[:, None].expand(-1, values.shape[1])
        every = torch.cat([self.values, values])
        self.values, rows = every.topk(len(self.values), dim=0)
        self.images = torch.cat([self.images, images]).gather(0, rows)

    def result(self) -> Tensor:
        """Return image numbers [unit, rank]."""
        return self.images.T


class Kept:
    """Pooled activations folded into what the rows of ``record`` are compared by.

    Of each neuron the mean over images of its largest patch and the images that excite it most;
    of each head the mean over images of its mean length over patches.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.neurons: list[Tensor] = []
        self.heads: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.search: Search | None = None
        self.n_images = 0

    def add_neurons(self, activation: Tensor) -> None:
        """Take the neurons of one block [image, token, neuron], class token first."""
        self.neurons.append(activation[:, 1:].amax(1))

    def add_heads(self, z: Tensor) -> None:
        """Take what the heads of one block give [image, token, head, d_head]."""
        self.heads.append(torch.linalg.vector_norm(z[:, 1:], dim=-1).mean(1))

    def end_batch(self) -> None:
        """Fold what the blocks gave into the statistics."""
        neurons, heads = torch.cat(self.neurons, 1), torch.cat(self.heads, 1)
        self.neurons, self.heads = [], []
        if self.search is None:
            self.search = Search(neurons.shape[1], self.k)
            self.sums = [torch.zeros(neurons.shape[1]), torch.zeros(heads.shape[1])]
        self.search.update(neurons, self.n_images)
        self.sums[0] += neurons.sum(0)
        self.sums[1] += heads.sum(0)
        self.n_images += len(neurons)

    def result(self) -> dict[str, Tensor]:
        """Return neuron_mean [neuron], head_mean [head] and top_image [neuron, rank]."""
        assert self.search is not None
        neurons, heads = (total / self.n_images for total in self.sums)
        return {"neuron_mean": neurons, "head_mean": heads, "top_image": self.search.result()}


class _Hooks:
    def __init__(self, model: nn.Module, k: int) -> None:
        self.model, self.kept = model, Kept(k)

    def batch(self, images: Tensor) -> None:
        handles = []
        for block in self.model.blocks:
            handles.append(block.attn.proj.register_forward_pre_hook(self._heads))
            handles.append(block.mlp.act.register_forward_hook(self._neurons))
        try:
            with torch.inference_mode():
                self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        self.kept.end_batch()

    def _heads(self, module: nn.Module, inputs: Any) -> None:
        self.kept.add_heads(inputs[0].unflatten(-1, (self.model.blocks[0].attn.num_heads, -1)))

    def _neurons(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept.add_neurons(output)

    def result(self) -> dict[str, Tensor]:
        return self.kept.result()


def recorder(model: nn.Module, k: int) -> _Hooks:
    """Return forward hooks on timm's modules."""
    return _Hooks(model, k)


def label(
    activations: Tensor, images: Tensor, texts: Tensor, *, top_k: int = 100, scale: float = 10
) -> Tensor:
    """Return the best concept of each unit by soft-WPMI as stated (CLIP-Dissect, 2204.10965).

    With P the softmax over concepts of 10 cos, p falling evenly from .998 over the 100 images
    that excite a unit most, ``L = Σ_j log(1 + p_j (P_jc - 1) + 1e-7)``, and the score
    ``L - log mean_units exp L``. One unit after the other, all concepts at once.
    """
    images = images / images.norm(dim=1, keepdim=True)
    texts = texts / texts.norm(dim=1, keepdim=True)
    chance = (scale * images @ texts.T).softmax(1)
    rows = activations.topk(min(top_k, len(activations)), dim=0).indices
    trust = (0.998 - torch.arange(len(rows)) / len(rows) * 0.028)[:, None]
    found = torch.stack([
        (1 + trust * (chance[images_of_unit] - 1) + 1e-7).log().sum(0)
        for images_of_unit in rows.T
    ])  # fmt: skip
    return (found - (found.logsumexp(0) - math.log(len(found)))).argmax(1)


def monosemanticity(activations: Tensor, embeddings: Tensor) -> Tensor:
    """Return the score [unit] as stated: a sum over all pairs of images (Pach, 2504.02821)."""
    low, high = activations.amin(0), activations.amax(0)
    scaled = (activations - low) / (high - low)
    e = embeddings / embeddings.norm(dim=1, keepdim=True)
    above, below = torch.zeros_like(low), torch.zeros_like(low)
    for i in range(len(e) - 1):
        weights = scaled[i] * scaled[i + 1 :]
        above += (e[i + 1 :] @ e[i]) @ weights
        below += weights.sum(0)
    return above / below
