"""Class activation maps: the grad-cam package on the layer that suits the model and the target.

The package sees a small module of ours in place of the network, with the layer's activation as
maps [image, channel, y, x] whatever the network is; so it needs no reshaping for transformers,
explains neurons as well as classes, and cannot change the network.

Selvaraju et al., arXiv 1610.02391 (Grad-CAM); Draelos and Carin, arXiv 2011.08891 (HiResCAM).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import (
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.explain.cam_layer import cam_layer
from polysem.explain.forward import explaining, require_finite_map, target_values
from polysem.explain.maps import patch_grid, spread
from polysem.explain.target import Target, TargetLike

__all__ = [
    "cam",
    "eigencam",
    "eigengradcam",
    "gradcam",
    "gradcam_elementwise",
    "gradcam_plusplus",
    "hirescam",
    "layercam",
    "xgradcam",
]


def gradcam(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """Feature maps weighted by the mean gradient of each (arXiv 1610.02391); see `cam`."""
    return cam(model, images, target, GradCAM, layer=layer)


def hirescam(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """Feature maps times their gradient (arXiv 2011.08891); see `cam`.

    Where everything after the layer is linear (pooling, a norm held fixed, the classifier), the
    sum of the map is the logit less its bias.
    """
    return cam(model, images, target, HiResCAM, layer=layer)


def gradcam_elementwise(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """Feature maps times their gradient where that is positive; see `cam`."""
    return cam(model, images, target, GradCAMElementWise, layer=layer)


def gradcam_plusplus(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """Grad-CAM with second-order weights (arXiv 1710.11063); see `cam`."""
    return cam(model, images, target, GradCAMPlusPlus, layer=layer)


def xgradcam(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """Grad-CAM with gradients weighted by activation (arXiv 2008.02312); see `cam`."""
    return cam(model, images, target, XGradCAM, layer=layer)


def layercam(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """Feature maps times their positive gradient (Jiang et al. 2021); see `cam`."""
    return cam(model, images, target, LayerCAM, layer=layer)


def eigencam(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """First principal component of the feature maps, whatever the target (arXiv 2008.00299)."""
    return cam(model, images, target, EigenCAM, layer=layer)


def eigengradcam(
    model: nn.Module, images: Tensor, target: TargetLike, *, layer: str | None = None
) -> Tensor:
    """First principal component of feature maps times gradient; see `cam`."""
    return cam(model, images, target, EigenGradCAM, layer=layer)


def cam(
    model: nn.Module,
    images: Tensor,
    target: TargetLike,
    kind: Callable[..., BaseCAM],
    *,
    layer: str | None = None,
    as_package: bool = False,
) -> Tensor:
    """Run a method of the grad-cam package.

    Parameters
    ----------
    model : nn.Module
    images : Tensor
        The model's input [image, channel, y, x].
    target : Target or Tensor
        What is explained.
    kind : type
        The package's class, such as `pytorch_grad_cam.HiResCAM`.
    layer : str, optional
        Site whose maps are read; by default `cam_layer.cam_layer`'s.
    as_package : bool, default False
        Give the package's own result: without negative values, each map scaled to [0, 1] and
        resized, so that sums and signs are lost. No norm is held fixed then.

    Returns
    -------
    Tensor
        [image, y, x]: signed and, where the method's theory has one, with its sum; spread over
        pixels by `maps.spread`.

    Raises
    ------
    SpecError
        If the model has no such maps, the target does not depend on the layer, or target or
        images do not fit the model.
    NonFiniteError
        If the map is not finite.
    """
    chosen = cam_layer(model, target) if layer is None else layer
    images = images.detach()
    with explaining(model), _norm_held(model, held=not as_package):
        tapped = _Tapped(model, target, chosen)
        package = kind(model=tapped, target_layers=[tapped.tap])
        raw: list[np.ndarray[Any, Any]] = []

        def keep(*args: Any, **options: Any) -> np.ndarray[Any, Any]:
            raw.append(type(package).get_cam_image(package, *args, **options))
            return raw[-1]

        package.get_cam_image = keep
        try:
            scaled = package(images, [_only_value] * len(images))
        finally:
            package.activations_and_grads.release()
    name = getattr(kind, "__name__", "cam")
    if as_package:
        return require_finite_map(torch.from_numpy(scaled).to(images.device), name)
    maps = torch.from_numpy(raw[0]).to(images)
    return spread(require_finite_map(maps, name), (images.shape[2], images.shape[3]))


def _only_value(output: Tensor) -> Tensor:
    return output[0]


class _Tapped(nn.Module):
    """From images to the target's number [image, 1], the layer's maps going through `tap`.

    The network is no submodule, so that nothing that is done to this module reaches it; the
    graph starts at the maps.
    """

    def __init__(self, model: nn.Module, target: TargetLike, layer: str) -> None:
        super().__init__()
        self.tap: nn.Module = nn.Identity()
        like = next(model.parameters())
        self.device_of = nn.Parameter(like.new_empty(0), requires_grad=False)
        self.run: Callable[[Tensor], Tensor] = partial(
            self._values, model, target=target, layer=layer
        )
        self.layer, self.target = layer, target

    def forward(self, images: Tensor) -> Tensor:
        """Return the target's number of each image, [image, 1]."""
        return self.run(images)[:, None]

    def _values(self, model: nn.Module, images: Tensor, target: TargetLike, layer: str) -> Tensor:
        n_prefix = int(getattr(model, "num_prefix_tokens", 0))

        def through(activation: Tensor) -> Tensor:
            leaf = activation.detach().clone()
            if leaf.ndim == 4 and "hook_post" in layer:
                return self._tapped(leaf)
            if leaf.ndim != 3:
                raise SpecError(f"{layer} has no patches, so there are no maps to weigh")
            patches = leaf[:, n_prefix:]
            grid = patch_grid(model, images, patches.shape[1])
            maps = self._tapped(patches.transpose(1, 2).unflatten(2, grid).contiguous())
            return torch.cat([leaf[:, :n_prefix], maps.flatten(2).transpose(1, 2)], dim=1)

        values = target_values(model, images, [target], edits={layer: through})[0]
        if torch.is_grad_enabled() and not values.requires_grad:
            raise SpecError(f"{_named(target)} does not depend on {layer}; name an earlier layer")
        return values

    def _tapped(self, maps: Tensor) -> Tensor:
        out: Tensor = self.tap(maps.requires_grad_(torch.is_grad_enabled()))
        return out


def _named(target: TargetLike) -> str:
    return str(target) if isinstance(target, Target) else "a class"


@contextmanager
def _norm_held(model: nn.Module, *, held: bool) -> Iterator[None]:
    """Hold the deviation fixed by which a norm between pooling and classifier divides.

    Such a norm (timm's `fc_norm` of average-pooled transformers) undoes any scaling of the
    tokens, so that gradients times activations would sum to nothing; with its deviation a
    constant the classifier is linear in the tokens.
    """
    norm: Any = getattr(model, "fc_norm", None)
    if not held or not isinstance(norm, nn.LayerNorm):
        yield
        return

    def linear(module: nn.LayerNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        variance, mean = torch.var_mean(inputs[0], dim=-1, correction=0, keepdim=True)
        scaled = (inputs[0] - mean) * (variance + module.eps).rsqrt().detach()
        scaled = scaled if module.weight is None else scaled * module.weight
        return scaled + (output - scaled).detach()  # the value stays what it was

    handle = norm.register_forward_hook(linear)
    try:
        yield
    finally:
        handle.remove()
