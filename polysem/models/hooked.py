"""Give any supported vision model TransformerLens's hooks: the one place where models are tapped.

`HookedVisionModel` wraps a model without changing it. Its hook points are TransformerLens's own,
named by `polysem.sites`; a tap (a plain torch hook on the module beside the site) is set only
for the hook points that somebody listens to, and only while a forward pass runs, so that a
wrapped model with no hooks costs what the model costs.

Attention stays fused: the pattern is computed from the recorded queries and keys where somebody
asks for it, and the heads' output is recomputed from the pattern only if it was edited.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from polysem.errors import SpecError, did_you_mean
from polysem.models.taps import find_taps, tapped

# after taps, which repairs torchvision: transformer_lens imports it too
from transformer_lens import HookedRootModule  # isort: skip
from transformer_lens.hook_points import HookPoint  # isort: skip

__all__ = ["HookedVisionModel"]


class HookedVisionModel(HookedRootModule):  # type: ignore[misc]
    """A vision model as a TransformerLens `HookedRootModule`.

    `run_with_cache`, `run_with_hooks`, `hooks`, `hook_dict` and the rest of TransformerLens's
    interface work as there. Gradients, devices, modes and parameters are those of the model.

    Parameters
    ----------
    model : nn.Module
        A timm `VisionTransformer` (ours, B-cos or standard, included) or a CNN whose blocks give
        [image, channel, y, x]. Hugging Face ViTs come as timm's through `load_model`.

    Attributes
    ----------
    model : nn.Module
        The wrapped model itself.
    hook_dict : dict of str to HookPoint
        The sites of this model in network order.
    n_prefix_tokens : int
        Tokens before the patches (class and register tokens); 0 for average-pooled ViTs.
    has_class_token : bool
        Whether token 0 is a class token.

    Raises
    ------
    SpecError
        If no site of the model is known.

    Examples
    --------
    >>> from polysem.models.load import load_model
    >>> hooked = HookedVisionModel(load_model("timm:vit_tiny_patch16_224").model)
    >>> "blocks.11.mlp.hook_post" in hooked.hook_dict
    True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.taps = find_taps(model)
        if not self.taps:
            raise SpecError(
                f"{type(model).__name__} has no site that polysem knows: it reads timm vision "
                "transformers and networks of convolutional blocks"
            )
        for name in self.taps:
            _plant(self, name)
        self.setup()  # before the model is attached: its own modules are not hook points
        self.mod_dict = _Sites(self.mod_dict)
        self.model = model
        self.n_prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
        self.has_class_token = bool(getattr(model, "has_class_token", False))
        self.cfg = _config(model)

    def forward(self, images: Tensor) -> Any:
        """Run the model on `images` [image, channel, y, x] with whatever hooks are set."""
        points = {name: point for name, point in self.hook_dict.items() if point.has_hooks()}
        if not points:
            return self.model(images)
        with tapped(self.taps, points):
            return self.model(images)


class _Sites(dict[str, nn.Module]):
    """TransformerLens's name → module dict that answers an unknown name with a sentence."""

    def __missing__(self, name: str) -> nn.Module:
        raise SpecError(f"this model has no site {name!r}{did_you_mean(name, self)}")


def _plant(root: nn.Module, name: str) -> None:
    """Add a hook point under its dotted name, with plain modules for the levels between."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, HookPoint())


def _config(model: nn.Module) -> SimpleNamespace | None:
    """Return the sizes that TransformerLens's ActivationCache asks of ``model.cfg``."""
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(model, "embed_dim") or not hasattr(blocks[0], "attn"):
        return None
    d_model, n_heads = int(model.embed_dim), int(blocks[0].attn.num_heads)
    return SimpleNamespace(
        n_layers=len(blocks), n_heads=n_heads, d_model=d_model, d_head=d_model // n_heads
    )
