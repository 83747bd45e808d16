"""Scores and patterns of layers of timm's and of ours, against what fused attention gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import Attention
from torch import Tensor

from polysem.models.attention import PositionAttention, attention_layer
from polysem.models.attn_scale import AttnScale
from polysem.models.scores import (
    attention_bias,
    attention_pattern,
    attention_read,
    attention_scores,
    pattern_logits,
)


def layer(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "timm":
        return Attention(8, num_heads=2).double()
    options = {"scale": {"mixer_type": AttnScale}, "ours": {}}[kind]
    made = attention_layer(PositionAttention, grid=(2, 3), **options)(8, num_heads=2)
    torch.nn.init.normal_(made.position_bias.table, std=2)
    if kind == "scale":
        torch.nn.init.constant_(made.mixer.strength, 3.0)
    return made.double()


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "bool": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril()},
    "added": {"attn_mask": torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6)},
    "causal": {"is_causal": True},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", ["timm", "ours", "scale"])
def test_heads_write_what_is_read_from_the_pattern(kind: str, mask: str) -> None:
    if mask == "causal" and kind != "timm":
        mask = "bool"  # positions are not causal
    attn = layer(kind)
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    heads: list[Tensor] = []
    handle = attn.proj.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
    attn(x, **MASKS[mask])
    handle.remove()
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    bias = attention_bias(attn, 6, **MASKS[mask])
    scores = attention_scores(attn, q, k, bias)
    pattern = attention_pattern(attn, scores)
    z = attention_read(attn, pattern, v)
    torch.testing.assert_close(z.transpose(1, 2).flatten(2), heads[0])
    positive = pattern.clamp_min(0)
    torch.testing.assert_close(
        pattern_logits(attn, scores).softmax(-1), positive / positive.sum(-1, keepdim=True)
    )
    assert bool((pattern < 0).any()) is (kind == "scale")
    if kind != "scale":
        assert pattern_logits(attn, scores) is scores
