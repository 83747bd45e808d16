"""From a model and images to the numbers that are explained, with their graph.

`target_values` runs a model once for any number of targets, and `explaining` is the one place
that prepares a model for that and puts everything back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from polysem.errors import NonFiniteError, SpecError, did_you_mean
from polysem.explain.target import Target, TargetLike
from polysem.models.hooked import HookedVisionModel
from polysem.sites import Site, parse_site

__all__ = [
    "check_images",
    "explaining",
    "forward",
    "read_unit",
    "require_finite_map",
    "target_values",
]


@contextmanager
def explaining(model: nn.Module, *, kernels_for_rows: bool = False) -> Iterator[None]:
    """Prepare a model to be explained: evaluation mode, parameters frozen, gradients recorded.

    Everything is put back at the end, also when the body raises.

    Parameters
    ----------
    model : nn.Module
    kernels_for_rows : bool, default False
        Run attention in parts. These keep the pattern, which pays off from two rows of gradients
        on, and unlike the fused kernel they go backwards for many rows at a time.

    Raises
    ------
    SpecError
        If `model` is no network.
    """
    if not isinstance(model, nn.Module):
        raise SpecError(f"{type(model).__name__} is no network; if it holds one, pass that")
    training = [module for module in model.modules() if module.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if kernels_for_rows:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


def target_values(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[TargetLike],
    *,
    edits: Mapping[str, Callable[[Tensor], Tensor | None]] | None = None,
) -> Tensor:
    """Run a model once and return the numbers that are explained, with their graph.

    Parameters
    ----------
    model : nn.Module
        Within :func:`explaining`.
    images : Tensor
        The model's input [image, channel, y, x].
    targets : sequence of Target or Tensor
        At least one.
    edits : mapping of str to callable, optional
        By site; gets the activation, and returns another in its place, or None to leave it.

    Returns
    -------
    Tensor
        [target, image].

    Raises
    ------
    SpecError
        If a class, site, unit or patch does not exist, or the images do not fit the model.
    NonFiniteError
        If a number is NaN or infinite.
    """
    sites = {t.site for t in targets if isinstance(t, Target) and t.site is not None}
    seen: dict[str, Tensor] = {}
    edits = edits or {}
    points = {site: _keep(seen, site, edits.get(site)) for site in {*sites, *edits}}
    logits, prefix, class_token = forward(model, images, points)
    values = []
    for target in targets:
        if isinstance(target, Tensor):
            values.append(_own_class(logits, target))
        elif target.site is None:
            values.append(_logit(logits, target.unit))
        else:
            if target.site not in seen:
                raise SpecError(f"the forward pass never reached {target.site}")
            values.append(read_unit(seen[target.site], target, prefix, class_token))
    stacked = torch.stack(values)
    if not bool(stacked.isfinite().all()):
        bad = next(t for t, v in zip(targets, values, strict=True) if not v.isfinite().all())
        name = "the class asked for" if isinstance(bad, Tensor) else str(bad)
        raise NonFiniteError(f"{name} is NaN or infinite: the weights or the images are at fault")
    return stacked


def forward(
    model: nn.Module, images: Tensor, points: Mapping[str, Callable[[Tensor], Tensor | None]]
) -> tuple[Tensor, int, bool]:
    """Run a model once, showing what is at some sites to functions that may replace it.

    Parameters
    ----------
    model : nn.Module
    images : Tensor
        The model's input [image, channel, y, x].
    points : mapping of str to callable
        By site; each gets the activation and returns another, or None to leave it.

    Returns
    -------
    logits : Tensor
    n_prefix_tokens : int
        Tokens before the patches.
    has_class_token : bool

    Raises
    ------
    SpecError
        If a site is not one of the model's, or the images do not fit the model.
    """
    check_images(model, images)
    run: Any = model
    hooked = None
    if points:
        hooked = HookedVisionModel(model)
        for site in points:
            if site not in hooked.hook_dict:
                near = did_you_mean(site, hooked.hook_dict)
                raise SpecError(f"this model has no site {site!r}{near}")
        run = hooked
    try:
        if hooked is None:
            logits = run(images)
        else:
            hooks = [(name, _as_hook(point)) for name, point in points.items()]
            with hooked.hooks(fwd_hooks=hooks):
                logits = run(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, (SpecError, torch.OutOfMemoryError)):
            raise
        _explain_misfit(model, images, error)
        raise
    if hooked is not None:
        return logits, hooked.n_prefix_tokens, hooked.has_class_token
    return (
        logits,
        int(getattr(model, "num_prefix_tokens", 0)),
        bool(getattr(model, "has_class_token", False)),
    )


def check_images(model: nn.Module, images: Tensor) -> None:
    """Refuse what is no batch of images for a model.

    Raises
    ------
    SpecError
        If the axes, the type or the channels are not those of the model's input.
    NonFiniteError
        If a pixel is NaN or infinite.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise SpecError(
            f"images are floats [image, channel, y, x], not {images.dtype} of shape "
            f"{tuple(images.shape)}"
        )
    if not images.shape[0]:
        raise SpecError("there is no image to explain")
    channels = _channels(model)
    if channels is not None and images.shape[1] != channels:
        inverse = "; B-cos networks take [x, 1 − x], see add_inverse" if channels == 6 else ""
        raise SpecError(
            f"the model takes images of {channels} channels, not {images.shape[1]}{inverse}"
        )
    if not bool(images.isfinite().all()):
        raise NonFiniteError("an image holds NaN or infinite values; nothing can be explained")


def read_unit(
    activation: Tensor, target: Target, n_prefix_tokens: int, class_token: bool
) -> Tensor:
    """Return the numbers [image] that a target reads off the activation at its site.

    Raises
    ------
    SpecError
        If the site has no such unit, patch or class token, or its axes are others.
    """
    assert target.site is not None
    site = parse_site(target.site)
    if activation.ndim != len(site.dims):
        raise SpecError(
            f"{site.name} gives a tensor of shape {tuple(activation.shape)}, not "
            f"[{', '.join(site.dims)}]; its units cannot be explained"
        )
    axis = site.dims.index(site.unit_dim)
    if target.unit >= activation.shape[axis]:
        raise SpecError(
            f"{site.name} has no unit {target.unit}: it has {activation.shape[axis]}, from 0 on"
        )
    one = activation.select(axis, target.unit)
    if "head" in site.dims:
        one = torch.linalg.vector_norm(one, dim=-1)
    sign = 1 if target.tail == "upper" else -1
    if "token" not in site.dims and "channel" not in site.dims:
        return sign * one
    if target.pool == "cls":
        if not class_token:
            raise SpecError(f"{target}: this model has no class token")
        return sign * one[:, 0]
    patches = one.flatten(1) if "channel" in site.dims else one[:, n_prefix_tokens:]
    return sign * _pooled(patches, target, site, sign)


def _pooled(patches: Tensor, target: Target, site: Site, sign: int) -> Tensor:
    if target.position is not None:
        if target.position >= patches.shape[1]:
            raise SpecError(
                f"{site.name} has no patch {target.position}: it has {patches.shape[1]}, from 0 on"
            )
        return patches[:, target.position]
    if target.pool == "mean":
        return patches.mean(1)
    strongest = (sign * patches.detach()).argmax(1, keepdim=True)
    return patches.gather(1, strongest)[:, 0]


def require_finite_map(maps: Tensor, method: str) -> Tensor:
    """Return maps [image, y, x] if all their values are numbers.

    Raises
    ------
    NonFiniteError
        Naming the method and the first image whose map holds NaN or infinity.
    """
    bad = ~maps.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"the map of {method} for image {int(bad.nonzero()[0, 0])} holds NaN or infinite "
            "values: weights, image or precision are at fault"
        )
    return maps


def _keep(
    seen: dict[str, Tensor], site: str, edit: Callable[[Tensor], Tensor | None] | None
) -> Callable[[Tensor], Tensor | None]:
    def keep(activation: Tensor) -> Tensor | None:
        edited = None if edit is None else edit(activation)
        seen[site] = activation if edited is None else edited
        return edited

    return keep


def _as_hook(point: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
    return lambda activation, hook: point(activation)


def _own_class(logits: Tensor, classes: Tensor) -> Tensor:
    if classes.ndim != 1 or classes.dtype != torch.int64 or len(classes) != len(logits):
        raise SpecError(
            f"classes are int64 [image], one for each of the {len(logits)} images, not "
            f"{classes.dtype} of shape {tuple(classes.shape)}"
        )
    for extreme in (classes.min(), classes.max()):
        _logit(logits, int(extreme))
    return logits.gather(1, classes.to(logits.device)[:, None])[:, 0]


def _logit(logits: Tensor, index: int) -> Tensor:
    if logits.ndim != 2:
        raise SpecError(f"the model gives a tensor of shape {tuple(logits.shape)}, no logits")
    if not 0 <= index < logits.shape[1]:
        raise SpecError(f"there is no class {index}: the model has {logits.shape[1]}, from 0 on")
    return logits[:, index]


def _channels(model: nn.Module) -> int | None:
    """Return the channels of the images that a model takes, where its first layer tells."""
    said = getattr(model, "in_chans", None)
    if isinstance(said, int):
        return said
    for module in model.modules():
        channels = getattr(module, "in_channels", None)
        if isinstance(channels, int):
            return channels
    config = getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    return size[0] if size else None


def _explain_misfit(model: nn.Module, images: Tensor, error: Exception) -> None:
    """Say that the images do not fit, if it is their size that the model fails of."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = tuple(size or config.get("input_size", (0, 0, 0))[1:])
    given = tuple(images.shape[2:])
    if given != size:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(
            f"images of {given[0]} × {given[1]} px do not go through this model, built for "
            f"{size[0]} × {size[1]}: {reason}"
        ) from None
