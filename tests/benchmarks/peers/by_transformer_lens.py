"""The same work through TransformerLens: its bridge on the same ViT in transformers' layout."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import torch
from by_hand import Kept
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import ViTConfig, ViTForImageClassification

__all__ = ["recorder"]


class _Bridge:
    def __init__(self, model: nn.Module, k: int, way: str) -> None:
        peer = _in_transformers(model)
        with tempfile.TemporaryDirectory() as folder:
            peer.save_pretrained(folder)
            self.bridge = TransformerBridge.boot_transformers(folder, hf_model=peer, device="cpu")
        self.peer = peer
        self.kept, self.way = Kept(k), way
        blocks = range(len(model.blocks))
        self.neurons = [f"blocks.{i}.mlp.hook_post" for i in blocks]
        self.heads = [f"blocks.{i}.attn.hook_z" for i in blocks]

    def bare(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.peer(images).logits

    def batch(self, images: Tensor) -> None:
        with torch.inference_mode():
            if self.way == "hooks":
                hooks = [(name, partial(_taken, self.kept.add_neurons)) for name in self.neurons]
                hooks += [(name, partial(_taken, self.kept.add_heads)) for name in self.heads]
                self.bridge.run_with_hooks(images, fwd_hooks=hooks)
            else:
                names = [*self.neurons, *self.heads]
                _, cache = self.bridge.run_with_cache(images, names_filter=names)
                for neurons, heads in zip(self.neurons, self.heads, strict=True):
                    self.kept.add_neurons(cache[neurons])
                    self.kept.add_heads(cache[heads])
        self.kept.end_batch()

    def result(self) -> dict[str, Tensor]:
        return self.kept.result()


def _taken(take: Any, value: Tensor, hook: Any) -> Tensor:
    take(value)
    return value


def _in_transformers(model: nn.Module) -> nn.Module:
    """Return timm's ViT as transformers', the same function."""
    config = ViTConfig(
        hidden_size=model.embed_dim, num_hidden_layers=len(model.blocks),
        num_attention_heads=model.blocks[0].attn.num_heads,
        intermediate_size=model.blocks[0].mlp.fc1.out_features,
        image_size=model.patch_embed.img_size[0], patch_size=model.patch_embed.patch_size[0],
        num_labels=model.num_classes, layer_norm_eps=model.norm.eps,
    )  # fmt: skip
    peer = ViTForImageClassification(config).eval()
    renames = [
        ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
        ("cls_token", "vit.embeddings.cls_token"),
        ("pos_embed", "vit.embeddings.position_embeddings"),
        ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("head.", "classifier."),
    ]  # fmt: skip
    if any(".attention.attention.query." in key for key in peer.state_dict()):  # transformers 4
        layer = "vit.encoder.layer."
        parts = (
            "attention.attention.query attention.attention.key attention.attention.value "
            "attention.output.dense intermediate.dense output.dense"
        )
    else:
        layer = "vit.layers."
        parts = (
            "attention.q_proj attention.k_proj attention.v_proj attention.o_proj mlp.fc1 mlp.fc2"
        )
    q, k, v, o, up, down = parts.split()
    renames += [("attn.proj", o), ("mlp.fc1", up), ("mlp.fc2", down)]
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        name = key.replace("norm.", "vit.layernorm.") if key.startswith("norm.") else key
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        name = name.replace("blocks.", layer)
        if "attn.qkv" in name:
            for part, rows in zip((q, k, v), value.chunk(3), strict=True):
                found[name.replace("attn.qkv", part)] = rows
        else:
            found[name] = value
    peer.load_state_dict(found)
    return peer


def recorder(model: nn.Module, k: int, way: str = "hooks") -> _Bridge:
    """Return the bridge; `way` is ``hooks`` (pooled in hooks) or ``cache`` (kept, then pooled)."""
    return _Bridge(model, k, way)
