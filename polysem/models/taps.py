"""Where each site sits in a network: from site names to plain torch hooks, for `hooked` alone.

A tap shows a tensor to its hook point and puts back what the hook point returns. It never
changes a tensor that nobody edited, so reading a site cannot change the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from polysem import _torchvision

_torchvision.repair()

from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

__all__ = ["Tap", "find_taps", "tapped"]

Point: TypeAlias = Callable[[Tensor], Tensor]
Attach: TypeAlias = Callable[[Mapping[str, Point]], list[RemovableHandle]]

#: Activation functions whose output cannot fall below a small constant, by class name (timm and
#: torch each have their own classes).
_BOUNDED_BELOW = {
    "ReLU", "ReLU6", "GELU", "GELUTanh", "QuickGELU", "QuickGELUActivation", "SiLU", "Swish",
    "Sigmoid", "Softplus", "Mish", "HardSwish", "Hardswish",
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


def find_taps(model: nn.Module) -> dict[str, Tap]:
    """Return the taps of every site of a model by site name, in network order.

    An empty dict means that no site of the model is known.
    """
    if isinstance(model, VisionTransformer):
        return _vit_taps(model)
    if any("attention" in type(m).__name__.lower() for m in model.modules()):
        return {}  # hierarchical transformers: axes and windows differ from block to block
    return _cnn_taps(model)


def _vit_taps(model: VisionTransformer) -> dict[str, Tap]:
    taps: dict[str, Tap] = {"hook_embed": _output_tap("hook_embed", model.patch_embed)}
    for layer, block in enumerate(model.blocks):
        taps |= _block_taps(f"blocks.{layer}", block)
    if not isinstance(model.norm, nn.Identity):
        taps["ln_final.hook_normalized"] = _output_tap("ln_final.hook_normalized", model.norm)
    taps["hook_pooled"] = _input_tap("hook_pooled", model.head)
    return taps


def _block_taps(prefix: str, block: nn.Module) -> dict[str, Tap]:
    taps = {f"{prefix}.hook_resid_pre": _input_tap(f"{prefix}.hook_resid_pre", block)}
    if isinstance(block, Block):
        taps[f"{prefix}.ln1.hook_normalized"] = _output_tap(
            f"{prefix}.ln1.hook_normalized", block.norm1
        )
        taps |= _attention_taps(f"{prefix}.attn", block.attn)
        taps[f"{prefix}.hook_attn_out"] = _output_tap(f"{prefix}.hook_attn_out", block.drop_path1)
        taps[f"{prefix}.hook_resid_mid"] = _resid_mid_tap(f"{prefix}.hook_resid_mid", block)
        taps[f"{prefix}.ln2.hook_normalized"] = _output_tap(
            f"{prefix}.ln2.hook_normalized", block.norm2
        )
        taps |= _mlp_taps(f"{prefix}.mlp", block.mlp)
        taps[f"{prefix}.hook_mlp_out"] = _output_tap(f"{prefix}.hook_mlp_out", block.drop_path2)
    # last: an edited resid_mid is added to the block's output before resid_post is shown
    taps[f"{prefix}.hook_resid_post"] = _output_tap(f"{prefix}.hook_resid_post", block)
    return taps


def _mlp_taps(prefix: str, mlp: nn.Module) -> dict[str, Tap]:
    if not (hasattr(mlp, "fc1") and hasattr(mlp, "fc2")):
        return {}
    plain = not (hasattr(mlp, "gate_layer") or hasattr(mlp, "chunk_last"))  # a gate gives signs
    bounded = plain and type(getattr(mlp, "act", None)).__name__ in _BOUNDED_BELOW
    return {
        f"{prefix}.hook_pre": _output_tap(f"{prefix}.hook_pre", mlp.fc1),
        f"{prefix}.hook_post": _input_tap(f"{prefix}.hook_post", mlp.fc2, signed=not bounded),
    }


def _cnn_taps(model: nn.Module) -> dict[str, Tap]:
    taps = {}
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0]) if name else None
        if isinstance(parent, (nn.Sequential, nn.ModuleList)) and _is_block(module):
            site = f"{name}.hook_post"
            taps[site] = _output_tap(site, module, signed=not _ends_bounded(module))
    if not taps:
        return {}
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    head = head if head is not None else getattr(model, "fc", None)
    if isinstance(head, nn.Linear):  # a convolutional head sees maps: there is no pooled site
        taps["hook_pooled"] = _input_tap("hook_pooled", head)
    return taps


def _is_block(module: nn.Module) -> bool:
    """Tell whether a module is an innermost block: several layers, no list of further blocks."""
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        return False
    layers = [c for c in module.children() if any(True for _ in c.parameters())]
    inner = (
        child
        for m in module.modules()
        if m is not module and isinstance(m, (nn.Sequential, nn.ModuleList))
        for child in m
    )
    return len(layers) >= 2 and not any(_is_block(child) for child in inner)


def _ends_bounded(block: nn.Module) -> bool:
    last = [block._modules[name] for name in ("act3", "act2", "act") if name in block._modules]
    return bool(last) and type(last[0]).__name__ in _BOUNDED_BELOW


def _output_tap(name: str, module: nn.Module, *, signed: bool = True) -> Tap:
    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        def show(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            # a patch embedding that takes any image size keeps its grid: [image, y, x, d_model]
            shown = output.flatten(1, 2) if name == "hook_embed" and output.ndim == 4 else output
            edited = points[name](shown)
            return None if edited is shown else edited.reshape(output.shape)

        return [module.register_forward_hook(show)]

    return Tap(signed, attach)


def _input_tap(name: str, module: nn.Module, *, signed: bool = True) -> Tap:
    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        def show(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            edited = points[name](inputs[0])
            return None if edited is inputs[0] else (edited, *inputs[1:])

        return [module.register_forward_pre_hook(show)]

    return Tap(signed, attach)


def _resid_mid_tap(name: str, block: Block) -> Tap:
    """Show the stream between attention and MLP, which no module of timm's block carries alone.

    The MLP branch reads it through ``norm2``; the skip connection carries it to the output. An
    edit therefore goes to both: to ``norm2`` as it is, to the output as the difference.
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

        return [block.norm2.register_forward_pre_hook(show), block.register_forward_hook(carry)]

    return Tap(True, attach)


def _attention_taps(prefix: str, attn: nn.Module) -> dict[str, Tap]:
    if not all(hasattr(attn, part) for part in ("qkv", "q_norm", "k_norm", "proj", "num_heads")):
        return {}

    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        return _AttentionTap(prefix, attn, points).handles()

    sites = ("q", "k", "v", "attn_scores", "pattern", "z")
    return {f"{prefix}.hook_{s}": Tap(s not in ("pattern",), attach) for s in sites}


class _AttentionTap:
    """The six sites of one attention layer during one forward pass.

    Scores and pattern do not exist in fused attention. They are computed here from q and k,
    ``softmax(q kᵀ scale + bias)``, and replace the fused result only where they were edited.
    """

    def __init__(self, prefix: str, attn: nn.Module, points: Mapping[str, Point]) -> None:
        self.attn: Any = attn
        part = len(f"{prefix}.hook_")
        self.points = {n[part:]: p for n, p in points.items() if n.startswith(f"{prefix}.hook_")}
        self.seen: dict[str, Tensor] = {}

    def handles(self) -> list[RemovableHandle]:
        """Set the torch hooks that the wanted sites need."""
        want, attn = self.points, self.attn
        patterned = "attn_scores" in want or "pattern" in want
        handles = []
        if "q" in want or patterned:
            handles.append(attn.q_norm.register_forward_hook(self._show("q")))
        if "k" in want or patterned:
            handles.append(attn.k_norm.register_forward_hook(self._show("k")))
        if "v" in want or patterned:
            handles.append(attn.qkv.register_forward_hook(self._show_v))
        if "z" in want or patterned:
            before_proj = getattr(attn, "norm", attn.proj)
            handles.append(before_proj.register_forward_pre_hook(self._show_z))
        return handles

    def _show(self, site: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def show(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            tokens_first = output.transpose(1, 2)  # [image, token, head, d_head]
            edited = self._ask(site, tokens_first)
            output = output if edited is tokens_first else edited.transpose(1, 2)
            self.seen[site] = output
            return None if edited is tokens_first else output

        return show

    def _show_v(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        qkv = output.unflatten(-1, (3, self.attn.num_heads, -1))
        value = qkv[:, :, 2]
        edited = self._ask("v", value)
        self.seen["v"] = edited.transpose(1, 2)
        if edited is value:
            return None
        return torch.cat([qkv[:, :, :2], edited[:, :, None]], dim=2).flatten(2)

    def _show_z(self, _module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        z = inputs[0].unflatten(-1, (self.attn.num_heads, -1))
        edited = self._ask("z", self._through_pattern(z))
        return None if edited is z else (edited.flatten(2),)

    def _through_pattern(self, z: Tensor) -> Tensor:
        if "q" not in self.seen or "k" not in self.seen or "v" not in self.seen:
            return z
        q, k, v = (self.seen.pop(site) for site in "qkv")
        if not ("attn_scores" in self.points or "pattern" in self.points):
            return z
        scale = q.shape[-1] ** -0.5 if self.attn.fused_attn else self.attn.scale
        scores = (q * scale) @ k.transpose(-2, -1)
        bias = (
            self.attn.attention_bias(q.shape[2]) if hasattr(self.attn, "attention_bias") else None
        )
        scores = scores if bias is None else scores + bias
        shown = self._ask("attn_scores", scores)
        if shown is scores and "pattern" not in self.points:
            return z
        pattern = shown.softmax(dim=-1)
        edited = self._ask("pattern", pattern)
        if shown is scores and edited is pattern:
            return z
        return (edited @ v).transpose(1, 2)

    def _ask(self, site: str, value: Tensor) -> Tensor:
        return self.points[site](value) if site in self.points else value
