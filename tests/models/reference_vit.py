"""A vision transformer written out slowly, site by site: what the taps are compared with.

Only weights are taken from the model; every operation is spelled out here, attention included,
and each site can be edited on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polysem.models.bcos import BcosLinear

Edit = Callable[[Tensor], Tensor]


class Reference:
    """One forward pass, with `edits` by site name; `sites` holds what each site carried."""

    def __init__(self, model: Any, edits: Mapping[str, Edit] | None = None) -> None:
        self.model, self.edits = model, dict(edits or {})
        self.sites: dict[str, Tensor] = {}

    def site(self, name: str, value: Tensor) -> Tensor:
        value = self.edits.get(name, lambda same: same)(value)
        self.sites[name] = value
        return value

    def __call__(self, images: Tensor) -> Tensor:
        model = self.model
        patches = model.patch_embed(images)
        if patches.ndim == 4:
            patches = patches.reshape(len(images), -1, patches.shape[-1])
        x = self.site("hook_embed", patches)
        prefix = [t for t in (model.cls_token, model.reg_token) if t is not None]
        tokens = [token.expand(len(x), -1, -1) for token in prefix]
        if model.no_embed_class:
            x = torch.cat([*tokens, x + model.pos_embed], dim=1)
        else:
            x = torch.cat([*tokens, x], dim=1)
            x = x if model.pos_embed is None else x + model.pos_embed
        x = norm(x, model.norm_pre)
        for layer, block in enumerate(model.blocks):
            x = self.block(x, block, f"blocks.{layer}")
        if not isinstance(model.norm, nn.Identity):
            x = self.site("ln_final.hook_normalized", norm(x, model.norm))
        pooled = x[:, 0] if model.global_pool == "token" else x[:, len(prefix) :].mean(1)
        pooled = self.site("hook_pooled", norm(pooled, model.fc_norm))
        return linear(pooled, model.head)

    def block(self, x: Tensor, block: Any, name: str) -> Tensor:
        post_norm = type(block).__name__ == "ResPostBlock"
        x = self.site(f"{name}.hook_resid_pre", x)
        if post_norm:
            out = norm(self.attention(x, block.attn, f"{name}.attn"), block.norm1)
        else:
            read = self.site(f"{name}.ln1.hook_normalized", norm(x, block.norm1))
            out = self.attention(read, block.attn, f"{name}.attn") * gamma(block.ls1)
        x = self.site(f"{name}.hook_resid_mid", x + self.site(f"{name}.hook_attn_out", out))
        if post_norm:
            out = norm(self.mlp(x, block.mlp, f"{name}.mlp"), block.norm2)
        else:
            read = self.site(f"{name}.ln2.hook_normalized", norm(x, block.norm2))
            out = self.mlp(read, block.mlp, f"{name}.mlp") * gamma(block.ls2)
        return self.site(f"{name}.hook_resid_post", x + self.site(f"{name}.hook_mlp_out", out))

    def attention(self, x: Tensor, attn: Any, name: str) -> Tensor:
        n_heads = attn.num_heads
        rows = linear(x, attn.qkv).chunk(3, dim=-1)  # q of all heads, k of all, v of all
        q, k, v = (torch.stack(part.chunk(n_heads, dim=-1), dim=2) for part in rows)
        v = self.site(f"{name}.hook_v", v)
        q = self.site(f"{name}.hook_q", norm(q, attn.q_norm))
        k = self.site(f"{name}.hook_k", norm(k, attn.k_norm))
        scores = torch.einsum("iqhd,ikhd->ihqk", q, k) / q.shape[-1] ** 0.5
        position_bias = getattr(attn, "position_bias", None)
        if position_bias is not None:
            scores = scores + _relative(position_bias.table, position_bias.grid)
        scores = self.site(f"{name}.hook_attn_scores", scores)
        weights = scores.exp()
        pattern = self.site(f"{name}.hook_pattern", weights / weights.sum(-1, keepdim=True))
        z = self.site(f"{name}.hook_z", torch.einsum("ihqk,ikhd->iqhd", pattern, v))
        return linear(norm(z.flatten(2), attn.norm), attn.proj)

    def mlp(self, x: Tensor, mlp: Any, name: str) -> Tensor:
        if hasattr(mlp, "gate_last"):  # SwiGLU, both halves from one layer: silu(gate) · value
            gate, value = linear(x, mlp.fc1).chunk(2, dim=-1)
            gate = self.site(f"{name}.hook_pre", gate)
            post = gate * gate.sigmoid() * value
        else:
            pre = self.site(f"{name}.hook_pre", linear(x, mlp.fc1))
            post = pre if isinstance(mlp.act, nn.Identity) else _gelu(pre)
        post = self.site(f"{name}.hook_post", norm(post, mlp.norm))
        return linear(post, mlp.fc2)


def linear(x: Tensor, layer: Any) -> Tensor:
    """Apply a linear layer or a B-cos layer of exponent 2, or a head of one and a constant."""
    if isinstance(layer, nn.Sequential):
        return linear(x, layer.linear) + layer.bias.value
    if not isinstance(layer, BcosLinear):
        return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    weight = layer.weight / layer.weight.square().sum(1, keepdim=True).sqrt()
    response = x @ weight.T
    cosine = response / (x.square().sum(-1, keepdim=True).sqrt() + 1e-12)
    return response * cosine.abs()


def norm(x: Tensor, layer: Any) -> Tensor:
    """Apply layer normalisation; the identity, alone or after the norm, changes nothing."""
    if isinstance(layer, nn.Sequential):
        return norm(x, layer[0])
    if isinstance(layer, nn.Identity):
        return x
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return scaled * layer.weight + (0 if layer.bias is None else layer.bias)


def gamma(layer_scale: Any) -> Tensor | float:
    """Return the factors of LayerScale, 1 where there is none."""
    return getattr(layer_scale, "gamma", 1.0)


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def _relative(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the bias [head, query, key] that belongs to each offset of query from key."""
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    rows = [
        torch.stack([table[:, qy - ky + grid[0] - 1, qx - kx + grid[1] - 1] for ky, kx in places])
        for qy, qx in places
    ]
    return torch.stack(rows).permute(2, 0, 1)
