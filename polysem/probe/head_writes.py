"""What each head writes into the residual stream, and what that adds to the logit directly.

A head's write is its output z through its part of the output projection. In B-cos models the
projection scales each output by one dynamic factor that all heads share, so writes add up only
with that factor held fixed; here it is held at the value that all heads together gave it. The
final normalisation and pooling are held fixed as well, which makes the logit a sum over writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import einsum, rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import BcosLinear, explanation_mode
from polysem.models.bcosified import BcosifiedLinear
from polysem.models.lipsformer import PostNormBlock
from polysem.models.norms import held
from polysem.models.taps import tapped
from polysem.probe.gates import GatedViT

__all__ = ["Attribution", "attribute", "head_writes", "logit_direction"]

_PARTS = ("attn.hook_z", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True)
class Attribution:
    """How the correct-class logit of each image of a batch comes about.

    ``heads.sum + mlps.sum + embedding + remainder = logit``.

    Attributes
    ----------
    heads : Tensor
        Share of each head [image, head].
    mlps : Tensor
        Share of each block's MLP [image, layer].
    embedding : Tensor
        Share of what enters block 0 [image].
    remainder : Tensor
        What nobody wrote [image]: biases of the output projections and of the final
        normalisation and classifier; in a B-cos model its constant logit bias alone.
    logit : Tensor
        [image].
    opposition : Tensor
        Mean over tokens of −cos between the writes of two heads, where that is positive
        [image, head, head].
    """

    heads: Tensor
    mlps: Tensor
    embedding: Tensor
    remainder: Tensor
    logit: Tensor
    opposition: Tensor


def head_writes(block: Any, z: Tensor) -> Tensor:
    """Return what each head of a block adds to the stream [image, token, head, d_model].

    Parameters
    ----------
    block : Block
        Of a timm vision transformer: normalisation before attention.
    z : Tensor
        The heads' outputs [image, token, head, d_head].

    Raises
    ------
    SpecError
        If the output is not split by heads in a way that is known here.
    """
    _require_known(block)
    proj = block.attn.proj
    weight = proj.unit_weight() if isinstance(proj, BcosLinear) else proj.weight
    parts = rearrange(weight, "out (head d_head) -> head d_head out", head=z.shape[2])
    writes = einsum(z, parts, "i t head d_head, head d_head out -> i t head out")
    if isinstance(proj, BcosLinear):
        if proj.max_out > 1:  # the candidate that all heads together chose
            candidates = torch.unflatten(writes, -1, (-1, proj.max_out))
            chosen = candidates.sum(2, keepdim=True).argmax(-1, keepdim=True)
            writes = candidates.gather(-1, chosen.expand(*writes.shape[:3], -1, 1))[..., 0]
        response = writes.sum(2, keepdim=True)
        answer = proj(z.flatten(2))[:, :, None]
        if isinstance(proj, BcosifiedLinear) and proj.bias is not None:
            answer = answer - proj.conversion.left_of(proj.bias)  # still fading: nobody's write
        writes = writes * torch.where(response == 0, 0, answer / response)
    scale = getattr(block.attn, "feat_scale", nn.Identity())  # linear, over tokens and features
    scaled: Tensor = block.ls1(scale(writes))
    return scaled


def _require_known(block: Any) -> None:
    attn: Any = getattr(block, "attn", None)
    plain = (
        isinstance(block, Block)
        and not isinstance(block, PostNormBlock)
        and isinstance(getattr(attn, "norm", nn.Identity()), nn.Identity)
        and getattr(attn, "gate", None) is None
        and isinstance(attn.proj, (nn.Linear, BcosLinear))
    )
    if not plain:
        raise SpecError(
            f"the writes of heads in a {type(block).__name__} with {type(attn).__name__} cannot be "
            "told apart: something other than a projection follows the heads"
        )


def logit_direction(vit: GatedViT, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logit of each image's class, and its direction in the last residual stream.

    The direction [image, token, d_model] is the gradient with normalisation held at what it does
    to these tokens: ``logit = Σ tokens · direction`` up to biases.

    Raises
    ------
    SpecError
        If the network ends in something that is not known here.
    """
    model = vit.model
    with torch.enable_grad(), explanation_mode(model):
        leaf = tokens.detach().requires_grad_()
        pooled = held(model.fc_norm, model.pool(held(model.norm, leaf)))
        logits = model.head(model.head_drop(pooled))
        right = logits.gather(1, labels[:, None])[:, 0]
        (direction,) = torch.autograd.grad(right.sum(), leaf)
    own = vit.head(tokens).gather(1, labels[:, None])[:, 0]
    if not torch.allclose(own, right, rtol=1e-3, atol=1e-3):
        raise SpecError(f"what follows the last block of {type(model).__name__} is not known here")
    return own.detach(), direction


def attribute(vit: GatedViT, images: Tensor, labels: Tensor) -> Attribution:
    """Split the correct-class logit of each image by who wrote it.

    Direct shares only: what a head does through later blocks counts as theirs.

    Parameters
    ----------
    vit : GatedViT
        Inside `gates.frozen`.
    images, labels : Tensor
        [image, channel, y, x], [image].

    Raises
    ------
    SpecError
        If the model is not a plain pre-norm transformer.
    """
    for layer in range(vit.n_blocks):
        _require_known(vit.model.blocks[layer])
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        seen[name] = value
        return value

    names = [f"blocks.{layer}.{part}" for layer in vit.layers for part in _PARTS]
    with torch.no_grad():
        with tapped(vit.taps, {name: partial(keep, name) for name in names}):
            stream = vit.stream(images)
        logit, direction = logit_direction(vit, stream[-1], labels)
        heads, writes, biases = [], [], []
        for layer in vit.layers:
            written = head_writes(vit.model.blocks[layer], seen[f"blocks.{layer}.attn.hook_z"])
            added = seen[f"blocks.{layer}.hook_attn_out"]
            heads.append(einsum(written, direction, "i t head d, i t d -> i head"))
            biases.append(((added - written.sum(2)) * direction).sum((1, 2)))
            writes.append(nn.functional.normalize(written, dim=-1))
        mlps = [
            (seen[f"blocks.{layer}.hook_mlp_out"] * direction).sum((1, 2)) for layer in vit.layers
        ]
        tail = logit - (stream[-1] * direction).sum((1, 2))
        return Attribution(
            heads=torch.cat(heads, dim=1),
            mlps=torch.stack(mlps, dim=1),
            embedding=(stream[0] * direction).sum((1, 2)),
            remainder=torch.stack(biases).sum(0) + tail,
            logit=logit,
            opposition=_opposition(torch.cat(writes, dim=2)),
        )


def _opposition(writes: Tensor) -> Tensor:
    """Return the mean over tokens of −cos where positive, from unit writes [image, token, …]."""
    found = []
    for one in writes:  # all pairs at all tokens of one image are held at once
        cosine = einsum(one, one, "token i d, token j d -> token i j")
        found.append((-cosine).clamp(min=0).mean(0).fill_diagonal_(0))
    return torch.stack(found)
