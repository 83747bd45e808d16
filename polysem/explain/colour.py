"""Colour explanations of B-cos networks: what the network sees, in the colours it looks for.

Each pixel of W(x) is a direction in the colours ``[r, g, b, 1 − r, 1 − g, 1 − b]``, hence a
colour; how strongly it contributes makes it opaque. Böhle et al., arXiv 2205.10268, section 4.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.explain.linear import linear_map, require_bcos
from polysem.explain.target import TargetLike

__all__ = ["Ground", "colour", "colour_image", "on_ground"]

Ground = Literal["white", "black", "transparent"]

_TINY = 1e-12


def colour(
    model: nn.Module,
    images: Tensor,
    target: TargetLike,
    *,
    smooth: int | None = None,
    percentile: float = 99.5,
) -> Tensor:
    """Explain a class, a neuron or a head of a B-cos network in colour.

    Parameters
    ----------
    model : nn.Module
        Of B-cos layers.
    images : Tensor
        ``[x, 1 − x]``: [image, channel, y, x].
    target : Target or Tensor
        What is explained.
    smooth, percentile
        As in :func:`colour_image`.

    Returns
    -------
    Tensor
        RGBA in [0, 1]: [image, channel, y, x]; :func:`on_ground` lays it on a colour.

    Raises
    ------
    SpecError
        If the model has no B-cos layers, or does not take six channels.
    """
    require_bcos(model)
    found = linear_map(model, images, [target])
    return colour_image(found.source, found.weights[0], smooth=smooth, percentile=percentile)


def colour_image(
    images: Tensor, weights: Tensor, *, smooth: int | None = None, percentile: float = 99.5
) -> Tensor:
    """Turn rows of W(x) into pictures.

    ``g = relu(W / max|W|)`` over channels, colour ``g₊ / (g₊ + g₋)`` of each channel and its
    inverse; opacity ‖W‖₂ where the contribution ``Σ x ⊙ W`` is not negative and 0 elsewhere,
    averaged over a window, over its percentile, at most 1. As in the official code.

    Parameters
    ----------
    images, weights : Tensor
        [image, channel, y, x] of six channels.
    smooth : int, optional
        Side of the window in pixels, odd; 0 or 1 for none. By default in proportion to the 15 px
        that the official code takes for images of 224.
    percentile : float, default 99.5
        Of each image's opacity, above which it is full.

    Returns
    -------
    Tensor
        RGBA in [0, 1]: [image, channel, y, x].

    Raises
    ------
    SpecError
        If there are not six channels, or an option is out of range.
    """
    if images.shape[1] != 6:
        raise SpecError(
            f"colour explanations read colours off the six channels [x, 1 − x]; this input has "
            f"{images.shape[1]}"
        )
    if smooth is None:
        smooth = 2 * round((15 * min(images.shape[2:]) / 224 - 1) / 2) + 1
    if smooth < 0 or (smooth and smooth % 2 == 0):
        raise SpecError(f"smooth is the side of a window with a middle, odd, not {smooth}")
    if not 0 < percentile <= 100:
        raise SpecError(f"percentile must be above 0 and at most 100, not {percentile}")
    direction = (weights / (weights.abs().amax(1, keepdim=True) + _TINY)).clamp(min=0)
    dark = direction[:, 3:]
    colours = direction[:, :3] / (direction[:, :3] + dark + _TINY)
    contributes = (images * weights).sum(1, keepdim=True) >= 0
    alpha = torch.linalg.vector_norm(weights, dim=1, keepdim=True)
    alpha = torch.where(contributes, alpha, _TINY)
    if smooth > 1:
        alpha = F.avg_pool2d(alpha, smooth, stride=1, padding=smooth // 2)
    full = torch.quantile(alpha.flatten(1), percentile / 100, dim=1)[:, None, None, None]
    alpha = (alpha / full.clamp_min(torch.finfo(alpha.dtype).tiny)).clamp(0, 1)
    return torch.cat([colours, alpha], dim=1)


def on_ground(pictures: Tensor, ground: Ground = "white") -> Tensor:
    """Lay pictures [image, RGBA, y, x] on white or black: [image, RGB, y, x]; or leave them.

    Raises
    ------
    SpecError
        If the ground is none of the three.
    """
    if ground not in get_args(Ground):
        raise SpecError(f"the ground is {', '.join(get_args(Ground))}, not {ground!r}")
    if ground == "transparent":
        return pictures
    alpha = pictures[:, 3:]
    return pictures[:, :3] * alpha + (1 - alpha) * (ground == "white")
