"""Scores and pattern of any timm attention layer, which fused attention does not show; for `taps`.

A pattern is what ``pattern(scores(q, k, bias))`` gives, and heads write ``read(pattern, v)``:
softmax attention, or what the mixer of one of our layers says.
"""

from __future__ import annotations

from typing import Any

from timm.layers.attention import resolve_self_attn_mask
from torch import Tensor

from polysem.models.attention import PositionAttention

__all__ = [
    "attention_bias",
    "attention_pattern",
    "attention_read",
    "attention_scores",
    "pattern_logits",
]


def attention_bias(
    attn: Any, n_tokens: int, attn_mask: Any = None, is_causal: bool = False
) -> Tensor | None:
    """Return what an attention layer adds to its logits, if anything.

    Parameters
    ----------
    attn : nn.Module
        A timm attention layer.
    n_tokens : int
    attn_mask, is_causal
        As the layer is given them.

    Returns
    -------
    Tensor or None
        Broadcasts to [image, head, query, key].
    """
    if isinstance(attn, PositionAttention):
        return attn.logit_bias(n_tokens, attn_mask, is_causal)
    weight = attn.qkv.weight
    bias: Tensor | None = resolve_self_attn_mask(n_tokens, weight, attn_mask, is_causal)
    return bias


def attention_scores(attn: Any, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Return attention logits [image, head, query, key] of queries and keys.

    Parameters
    ----------
    attn : nn.Module
        A timm attention layer.
    q, k : Tensor
        [image, head, token, d_head].
    bias : Tensor or None
        From `attention_bias`.
    """
    if isinstance(attn, PositionAttention):
        return attn.mixer.scores(q, k, bias)
    scale = q.shape[-1] ** -0.5 if attn.fused_attn else attn.scale
    scores: Tensor = (q * scale) @ k.transpose(-2, -1)
    return scores if bias is None else scores + bias


def attention_pattern(attn: Any, scores: Tensor) -> Tensor:
    """Return the pattern [image, head, query, key] that a layer makes of its logits."""
    if isinstance(attn, PositionAttention):
        return attn.mixer.pattern(scores)
    return scores.softmax(dim=-1)


def attention_read(attn: Any, pattern: Tensor, v: Tensor) -> Tensor:
    """Return what the heads write [image, head, query, d_head], given a pattern and values."""
    if isinstance(attn, PositionAttention):
        return attn.mixer.read(pattern, v)
    return pattern @ v


def pattern_logits(attn: Any, scores: Tensor) -> Tensor:
    """Return logits whose softmax is the pattern that a layer makes of its scores.

    Patterns of other kinds than softmax may have negative weights, which count as 0, and rows of
    other sums than 1, which are scaled to it.
    """
    if not isinstance(attn, PositionAttention) or attn.mixer.is_softmax:
        return scores
    return attn.mixer.pattern(scores).clamp_min(0).log()
