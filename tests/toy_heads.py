"""A transformer built by hand whose heads are known to fight, to be redundant, to be independent.

One block, six heads in three pairs, two classes; the margin of class 1 is what the pairs add to
it. The residual stream and every head are turned at random, and heads are shuffled, so that
nothing but what the network computes tells the pairs.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

N_SIGNALS, N_HEADS, D_HEAD = 4, 6, 2
D_MODEL = N_HEADS * D_HEAD
_WRITES, _MARGIN = N_SIGNALS, N_SIGNALS + N_HEADS


def toy_vit(seed: int) -> tuple[Any, Tensor, Tensor, dict[str, tuple[int, int]]]:
    """Return model, images, labels, and the pairs by kind (earlier head first), in float64.

    Heads a, b both write signal 0; the MLP lets it count once: redundant, I = +s.
    Heads c, d both write signal 1; the MLP punishes what one writes without the other: they fight,
    and either does harm alone, I = −2s.
    Heads e, f write signals 2 and 3, which add up: independent, I = 0.
    """
    generator = torch.Generator().manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=N_SIGNALS, num_classes=2,
        embed_dim=D_MODEL, depth=1, num_heads=N_HEADS, mlp_ratio=0.5, class_token=False,
        global_pool="avg", pos_embed="none", norm_layer=nn.Identity, act_layer=nn.ReLU,
    ).double().eval()  # fmt: skip
    order = torch.randperm(N_HEADS, generator=generator).tolist()
    turn = _rotation(D_MODEL, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embed = torch.zeros(D_MODEL, N_SIGNALS, dtype=torch.float64)
        embed[:N_SIGNALS] = torch.eye(N_SIGNALS)
        model.patch_embed.proj.weight[:] = (turn @ embed)[:, :, None, None] / 16
        block = model.blocks[0]
        values, writes = block.attn.qkv.weight[2 * D_MODEL :], block.attn.proj.weight
        for role, signal in enumerate((0, 0, 1, 1, 2, 3)):
            at = slice(order[role] * D_HEAD, (order[role] + 1) * D_HEAD)
            within = _rotation(D_HEAD, generator)[0]
            values[at] = torch.outer(within, turn[:, signal])
            writes[:, at] = torch.outer(turn[:, _WRITES + role], within)
        a, b, c, d, e, f = (turn[:, _WRITES + role] for role in range(N_HEADS))
        margin = turn[:, _MARGIN]
        hidden = {a + b - turn[:, 0]: -1.0, c - d: -1.0, d - c: -1.0}
        for row, (read, effect) in enumerate(hidden.items()):
            block.mlp.fc1.weight[row] = read
            block.mlp.fc2.weight[:, row] = effect * margin
        model.head.weight[1] = a + b + e + f + margin
    signals = 0.5 + torch.rand(3, N_SIGNALS, generator=generator, dtype=torch.float64)
    images = signals[:, :, None, None].expand(-1, -1, 8, 8)
    pairs = {
        kind: tuple(sorted((order[role], order[role + 1])))
        for kind, role in {"redundant": 0, "fighting": 2, "independent": 4}.items()
    }
    return model, images, torch.ones(3, dtype=torch.long), pairs  # type: ignore[return-value]


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(noise)[0]
