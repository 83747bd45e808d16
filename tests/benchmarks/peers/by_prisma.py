"""The same work through ViT-Prisma: timm's weights, converted by its own function."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from by_hand import Kept
from torch import Tensor, nn
from vit_prisma.configs.HookedViTConfig import HookedViTConfig
from vit_prisma.models.base_vit import HookedViT
from vit_prisma.prisma_tools.loading_from_pretrained import convert_timm_weights

__all__ = ["recorder"]


class _Prisma:
    def __init__(self, model: nn.Module, k: int, way: str) -> None:
        attn, embed = model.blocks[0].attn, model.patch_embed
        config = HookedViTConfig(
            n_layers=len(model.blocks), d_model=model.embed_dim, n_heads=attn.num_heads,
            d_head=attn.head_dim, d_mlp=model.blocks[0].mlp.fc1.out_features,
            patch_size=embed.patch_size[0], image_size=embed.img_size[0],
            n_classes=model.num_classes, eps=model.norm.eps, return_type="class_logits",
        )  # fmt: skip
        self.model = HookedViT(config).eval()
        self.model.load_state_dict(convert_timm_weights(model.state_dict(), config), strict=False)
        self.kept, self.way = Kept(k), way
        blocks = range(config.n_layers)
        self.neurons = [f"blocks.{i}.mlp.hook_post" for i in blocks]
        self.heads = [f"blocks.{i}.attn.hook_z" for i in blocks]

    def bare(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.model(images)

    def batch(self, images: Tensor) -> None:
        with torch.inference_mode():
            if self.way == "hooks":
                hooks = [(name, partial(_taken, self.kept.add_neurons)) for name in self.neurons]
                hooks += [(name, partial(_taken, self.kept.add_heads)) for name in self.heads]
                self.model.run_with_hooks(images, fwd_hooks=hooks)
            else:
                names = {*self.neurons, *self.heads}
                _, cache = self.model.run_with_cache(images, names_filter=lambda n: n in names)
                for neurons, heads in zip(self.neurons, self.heads, strict=True):
                    self.kept.add_neurons(cache[neurons])
                    self.kept.add_heads(cache[heads])
        self.kept.end_batch()

    def result(self) -> dict[str, Tensor]:
        return self.kept.result()


def _taken(take: Any, value: Tensor, hook: Any) -> Tensor:
    take(value)
    return value


def recorder(model: nn.Module, k: int, way: str = "hooks") -> _Prisma:
    """Return a HookedViT; `way` is ``hooks`` (pooled in hooks) or ``cache`` (kept, then pooled)."""
    return _Prisma(model, k, way)
