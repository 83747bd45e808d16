"""Where the sites of a vision transformer sit: from site names to plain torch hooks, for `hooked`.

A tap shows a tensor to its hook point and puts back what the hook point returns. It never
changes a tensor that nobody edited, so reading a site cannot change the output. The sites of
CNNs are in `cnn_taps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from polysem import _torchvision

_torchvision.repair()

from timm.layers import Attention, Mlp  # noqa: E402
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer  # noqa: E402

from polysem.models.lipsformer import PostNormBlock  # noqa: E402
from polysem.models.scores import (  # noqa: E402
    attention_bias,
    attention_pattern,
    attention_read,
    attention_scores,
)

__all__ = [
    "BOUNDED_BELOW",
    "Point",
    "Tap",
    "input_tap",
    "output_tap",
    "tapped",
    "vit_taps",
]

Point: TypeAlias = Callable[[Tensor], Tensor]
Attach: TypeAlias = Callable[[Mapping[str, Point]], list[RemovableHandle]]

#: Activation functions whose output cannot fall below a small constant, by class name (timm and
#: torch each have their own classes).
BOUNDED_BELOW = {
    "ReLU", "ReLU6", "GELU", "GELUTanh", "QuickGELU", "QuickGELUActivation", "SiLU", "Swish",
    "Sigmoid", "Softplus", "Mish", "HardSwish", "Hardswish", "DetachableGate",
}  # fmt: skip


@dataclass(frozen=True)
class Tap:
    """One site of one model.

    Attributes
    ----------
    signed : bool
        Whether its units fire in both directions (False after ReLU, GELU and the like).
    attach : callable
        Sets torch hooks for a group of sites; sites of one group share the function.
    """

    signed: bool
    attach: Attach


@contextmanager
def tapped(taps: Mapping[str, Tap], points: Mapping[str, Point]) -> Iterator[None]:
    """Connect hook points to the model for the time of one forward pass."""
    handles: list[RemovableHandle] = []
    try:
        for attach in dict.fromkeys(taps[name].attach for name in points):
            handles += attach(points)
        yield
    finally:
        for handle in handles:
            handle.remove()


def vit_taps(model: VisionTransformer) -> dict[str, Tap]:
    """Return the taps of every site of a vision transformer by site name, in network order.

    Blocks that do not run attention and MLP one after the other have only the residual stream
    before and after them.
    """
    taps = _embed_tap("hook_embed", model.patch_embed)
    for layer, block in enumerate(model.blocks):
        taps |= _block_taps(f"blocks.{layer}", block)
    if not isinstance(model.norm, nn.Identity):
        taps |= output_tap("ln_final.hook_normalized", model.norm)
    if model.global_pool:  # a head without pooling sees every token
        taps |= input_tap("hook_pooled", model.head)
    return taps


def _block_taps(prefix: str, block: nn.Module) -> dict[str, Tap]:
    taps = input_tap(f"{prefix}.hook_resid_pre", block)
    if isinstance(block, (Block, ResPostBlock)):
        sums_normed = isinstance(block, PostNormBlock)
        norms_first = isinstance(block, Block) and not sums_normed
        if norms_first:
            taps |= output_tap(f"{prefix}.ln1.hook_normalized", block.norm1)
        taps |= _attention_taps(f"{prefix}.attn", block.attn)
        taps |= output_tap(f"{prefix}.hook_attn_out", block.drop_path1)
        if sums_normed:  # norm1 gives the stream itself
            taps |= output_tap(f"{prefix}.hook_resid_mid", block.norm1)
        else:
            reader = block.norm2 if norms_first else block.mlp
            taps |= _resid_mid_tap(f"{prefix}.hook_resid_mid", block, reader)
        if norms_first:
            taps |= output_tap(f"{prefix}.ln2.hook_normalized", block.norm2)
        taps |= _mlp_taps(f"{prefix}.mlp", block.mlp)
        taps |= output_tap(f"{prefix}.hook_mlp_out", block.drop_path2)
    # last: an edited resid_mid is added to the block's output before resid_post is shown
    return taps | output_tap(f"{prefix}.hook_resid_post", block)


def _mlp_taps(prefix: str, mlp: Any) -> dict[str, Tap]:
    if not (hasattr(mlp, "act") and hasattr(mlp, "fc2")):
        return {}
    # the neurons of gated MLPs, which are other classes in timm, are products and have signs
    plain = isinstance(mlp, Mlp) and isinstance(mlp.norm, nn.Identity)
    bounded = plain and type(mlp.act).__name__ in BOUNDED_BELOW
    return {
        **input_tap(f"{prefix}.hook_pre", mlp.act),
        **input_tap(f"{prefix}.hook_post", mlp.fc2, signed=not bounded),
    }


def output_tap(name: str, module: nn.Module, *, signed: bool = True) -> dict[str, Tap]:
    """Return a tap, by its name, on what a module returns."""

    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        def show(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            edited = points[name](output)
            return None if edited is output else edited

        return [module.register_forward_hook(show)]

    return {name: Tap(signed, attach)}


def input_tap(name: str, module: nn.Module, *, signed: bool = True) -> dict[str, Tap]:
    """Return a tap, by its name, on the first argument of a module."""

    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        def show(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            edited = points[name](inputs[0])
            return None if edited is inputs[0] else (edited, *inputs[1:])

        return [module.register_forward_pre_hook(show)]

    return {name: Tap(signed, attach)}


def _embed_tap(name: str, module: nn.Module) -> dict[str, Tap]:
    """Show patches as [image, token, d_model], also those of timm's embeddings for any size."""

    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        def show(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            tokens = output.flatten(1, 2) if output.ndim == 4 else output  # [image, y, x, d_model]
            return points[name](tokens).reshape(output.shape)

        return [module.register_forward_hook(show)]

    return {name: Tap(True, attach)}


def _resid_mid_tap(name: str, block: nn.Module, reader: nn.Module) -> dict[str, Tap]:
    """Show the stream between attention and MLP, which no module of timm's block carries alone.

    The MLP branch reads it through `reader`; the skip connection carries it to the output. An
    edit therefore goes to both: to `reader` as it is, to the output as the difference.
    """

    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        change: list[Tensor] = []

        def show(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
            edited = points[name](inputs[0])
            if edited is inputs[0]:
                return None
            change.append(edited - inputs[0])
            return (edited,)

        def carry(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            return output + change.pop() if change else None

        return [reader.register_forward_pre_hook(show), block.register_forward_hook(carry)]

    return {name: Tap(True, attach)}


def _attention_taps(prefix: str, attn: nn.Module) -> dict[str, Tap]:
    if not isinstance(attn, Attention):  # other kinds have other patterns
        return {}

    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        return _AttentionTap(prefix, attn, points).handles()

    sites = ("q", "k", "v", "attn_scores", "pattern", "z")
    return {f"{prefix}.hook_{site}": Tap(site != "pattern", attach) for site in sites}


class _AttentionTap:
    """The six sites of one attention layer during one forward pass.

    Scores and pattern do not exist in fused attention. They are computed here from q and k,
    ``softmax(q kᵀ scale + bias)`` or what the layer's mixer says, and replace the fused result
    only where they were edited (without dropout and DropHead, which act in training alone).
    """

    def __init__(self, prefix: str, attn: nn.Module, points: Mapping[str, Point]) -> None:
        self.attn: Any = attn
        part = len(f"{prefix}.hook_")
        self.points = {n[part:]: p for n, p in points.items() if n.startswith(f"{prefix}.hook_")}
        self.patterned = "attn_scores" in self.points or "pattern" in self.points
        self.seen: dict[str, Tensor] = {}  # [image, head, token, d_head], kept for the scores
        self.bias: Tensor | None = None

    def handles(self) -> list[RemovableHandle]:
        """Set the torch hooks that the wanted sites need."""
        attn = self.attn
        handles = []
        if self.patterned:
            handles.append(attn.register_forward_pre_hook(self._note_bias, with_kwargs=True))
        if "q" in self.points or self.patterned:
            handles.append(attn.q_norm.register_forward_hook(partial(self._show, "q")))
        if "k" in self.points or self.patterned:
            handles.append(attn.k_norm.register_forward_hook(partial(self._show, "k")))
        if "v" in self.points or self.patterned:
            handles.append(attn.qkv.register_forward_hook(self._show_v))
        if "z" in self.points or self.patterned:
            before_proj = getattr(attn, "norm", attn.proj)
            handles.append(before_proj.register_forward_pre_hook(self._show_z))
        return handles

    def _note_bias(self, _module: nn.Module, inputs: tuple[Any, ...], named: Any) -> None:
        """Keep what this pass adds to the logits: positions, and any mask."""
        self.bias = attention_bias(self.attn, inputs[0].shape[1], *inputs[1:], **named)

    def _show(self, site: str, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        tokens_first = output.transpose(1, 2)
        edited = self._ask(site, tokens_first)
        changed = edited is not tokens_first
        output = edited.transpose(1, 2) if changed else output
        if self.patterned:
            self.seen[site] = output
        return output if changed else None

    def _show_v(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        qkv = torch.unflatten(output, -1, (3, self.attn.num_heads, -1))
        value = qkv[:, :, 2]
        edited = self._ask("v", value)
        if self.patterned:
            self.seen["v"] = edited.transpose(1, 2)
        if edited is value:
            return None
        return torch.cat([qkv[:, :, :2], edited[:, :, None]], dim=2).flatten(2)

    def _show_z(self, _module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        z = torch.unflatten(inputs[0], -1, (self.attn.num_heads, -1))
        edited = self._ask("z", self._through_pattern(z) if self.patterned else z)
        return None if edited is z else (edited.flatten(2),)

    def _through_pattern(self, z: Tensor) -> Tensor:
        """Show scores and pattern; return z, computed from them if either was edited."""
        q, k, v = (self.seen.pop(site) for site in "qkv")
        bias, self.bias = self.bias, None
        with _counting_changes():
            scores = attention_scores(self.attn, q, k, bias)
        scores, changed = self._ask_whether_changed("attn_scores", scores)
        if "pattern" in self.points or changed:
            with _counting_changes():
                pattern = attention_pattern(self.attn, scores)
            pattern, also = self._ask_whether_changed("pattern", pattern)
            if changed or also:
                return attention_read(self.attn, pattern, v).transpose(1, 2)
        return z

    def _ask(self, site: str, value: Tensor) -> Tensor:
        return self.points[site](value) if site in self.points else value

    def _ask_whether_changed(self, site: str, value: Tensor) -> tuple[Tensor, bool]:
        """Also tell whether the answer is another tensor, or the same one changed in place."""
        version = value._version
        edited = self._ask(site, value)
        return edited, edited is not value or value._version != version


@contextmanager
def _counting_changes() -> Iterator[None]:
    """Let new tensors count their in-place changes, which in inference mode they do not."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        yield
