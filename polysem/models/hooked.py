"""Give any supported vision model TransformerLens's hooks: the one place where models are tapped.

`HookedVisionModel` wraps a model without changing it. Its hook points are TransformerLens's own,
named by `polysem.sites`; a tap (a plain torch hook on the module beside the site) is set only
for the hook points that somebody listens to, and only while a forward pass runs, so that a
wrapped model with no hooks costs what the model costs.

Attention stays fused: the pattern is computed from the recorded queries and keys where somebody
asks for it, and the heads' output is recomputed from the pattern only if it was edited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

from torch import Tensor, nn

from polysem.errors import SpecError, did_you_mean
from polysem.models.cnn_taps import cnn_taps
from polysem.models.taps import Tap, tapped, vit_taps

# after taps, which repairs torchvision: timm and transformer_lens import it too
from timm.models.vision_transformer import VisionTransformer  # isort: skip
from transformer_lens import ActivationCache, HookedRootModule  # isort: skip
from transformer_lens.hook_points import HookPoint  # isort: skip

__all__ = ["HookedVisionModel"]

Names: TypeAlias = Callable[[str], bool] | Sequence[str] | str | None


class HookedVisionModel(HookedRootModule):  # type: ignore[misc]
    """A vision model as a TransformerLens `HookedRootModule`.

    `run_with_cache`, `run_with_hooks`, `hooks`, `hook_dict` and the rest of TransformerLens's
    interface work as there. Gradients, devices, modes and parameters are those of the model.

    Parameters
    ----------
    model : nn.Module
        A timm `VisionTransformer` (ours, B-cos or standard, included) or a CNN whose blocks give
        [image, channel, y, x]. Hugging Face ViTs come as timm's through `load_model`; of what
        that returns, pass the attribute `model`.

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
        If no site of the model is known, or it is no network.

    Examples
    --------
    >>> from polysem.models.load import load_model
    >>> hooked = HookedVisionModel(load_model("timm:vit_tiny_patch16_224").model)
    >>> "blocks.11.mlp.hook_post" in hooked.hook_dict
    True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise SpecError(f"{type(model).__name__} is no network; if it holds one, pass that")
        self.taps = _find_taps(model)
        if not self.taps:
            raise SpecError(
                f"{type(model).__name__} has no site that polysem knows: it reads timm vision "
                "transformers and networks of convolutional blocks"
            )
        for name in self.taps:
            _plant(self, name)
        self.setup()  # before the model is attached: its own modules are not hook points
        self.mod_dict = _Sites(self.hook_dict)
        self.model = model
        self.n_prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
        self.has_class_token = bool(getattr(model, "has_class_token", False))
        self.cfg = _config(model)

    def forward(self, images: Tensor) -> Any:
        """Run the model on `images` [image, channel, y, x] with whatever hooks are set."""
        # the lists themselves, as has_hooks() of every point would take longer than small models
        points = {n: p for n, p in self.hook_dict.items() if p.fwd_hooks or p.bwd_hooks}
        if not points:
            return self.model(images)
        with tapped(self.taps, points):
            return self.model(images)

    def run_with_cache(
        self, images: Tensor, *, remove_batch_dim: bool = False, **options: Any
    ) -> tuple[Any, ActivationCache]:
        """Run the model and return its output and the activations of all sites, or of some.

        Parameters
        ----------
        images : Tensor
            [image, channel, y, x].
        remove_batch_dim : bool
            Leave out the image axis of a single image.
        **options
            TransformerLens's: `names_filter` (a site, several, or a function of their names),
            `device`, `incl_bwd` (needs a model of one output), `pos_slice`, ….

        Returns
        -------
        output : Tensor
        cache : ActivationCache
            By site name, or as ``cache["pattern", 2]`` and ``cache["resid_post", -1]``.

        Raises
        ------
        SpecError
            If a name is not a site of this model.
        """
        output, cache = super().run_with_cache(images, remove_batch_dim=remove_batch_dim, **options)
        return output, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    def get_caching_hooks(self, names_filter: Names = None, *args: Any, **options: Any) -> Any:
        """Return a dict and the hooks that fill it, as TransformerLens does; check the names."""
        self._check(names_filter)
        return super().get_caching_hooks(names_filter, *args, **options)

    def add_caching_hooks(self, names_filter: Names = None, *args: Any, **options: Any) -> Any:
        """Set hooks that fill the dict returned, as TransformerLens does; check the names."""
        self._check(names_filter)
        return super().add_caching_hooks(names_filter, *args, **options)

    def _check(self, names: Names) -> None:
        if names is not None and not callable(names):
            for name in [names] if isinstance(names, str) else names:
                self.mod_dict[name]

    def __getstate__(self) -> dict[str, Any]:
        # taps are functions of this very model: a copy finds its own
        return {key: value for key, value in self.__dict__.items() if key != "taps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.taps = _find_taps(self.model)


def _find_taps(model: nn.Module) -> dict[str, Tap]:
    """Return the taps of every site of a model by site name, in network order."""
    if isinstance(model, VisionTransformer):
        return vit_taps(model)
    if any("attention" in type(m).__name__.lower() for m in model.modules()):
        return {}  # other transformers: axes and windows differ from block to block
    return cnn_taps(model)


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
    if not isinstance(model, VisionTransformer):
        return None
    attention = next((block.attn for block in model.blocks if hasattr(block, "attn")), None)
    return SimpleNamespace(
        n_layers=len(model.blocks),
        n_heads=getattr(attention, "num_heads", None),
        d_model=model.embed_dim,
        d_head=getattr(attention, "head_dim", None),
        attn_only=False,
    )
