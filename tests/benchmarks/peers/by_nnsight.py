"""The same work through nnsight: one trace a batch, pooled inside it."""

from __future__ import annotations

import torch
from by_hand import Kept
from nnsight import NNsight
from torch import Tensor, nn

__all__ = ["recorder"]


class _Traced:
    def __init__(self, model: nn.Module, k: int) -> None:
        self.model, self.kept = NNsight(model), Kept(k)
        self.n_blocks, self.n_heads = len(model.blocks), model.blocks[0].attn.num_heads

    def batch(self, images: Tensor) -> None:
        kept, n_heads = self.kept, self.n_heads
        with torch.inference_mode(), self.model.trace(images):
            for i in range(self.n_blocks):
                block = self.model.blocks[i]
                kept.add_heads(block.attn.proj.input.unflatten(-1, (n_heads, -1)))
                kept.add_neurons(block.mlp.act.output)
        kept.end_batch()

    def result(self) -> dict[str, Tensor]:
        return self.kept.result()


def recorder(model: nn.Module, k: int) -> _Traced:
    """Return a traced network."""
    return _Traced(model, k)
