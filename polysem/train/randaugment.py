"""RandAugment of a whole uint8 batch, where it lies: images that drew the same change it together.

The operations, their strengths and how one is drawn are torchvision's; only the drawing is for
each image, and from a generator that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from polysem import _torchvision
from polysem.train.inputs import RandAugment

_torchvision.repair()

from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

__all__ = ["BINS", "operations", "rand_augment"]

BINS = 31
"""Strengths from none to full, as in torchvision; `RandAugment.m` is one of them."""

Operation = Callable[[Tensor], Tensor]


def operations(m: int, height: int, width: int, *, colour: bool = True) -> list[Operation]:
    """Return what an image may draw, each twice: once for either sign where it has one.

    Parameters
    ----------
    m : int
        Strength, from 0 to 30.
    height, width : int
        Of the images, which translations are measured by.
    colour : bool
        Whether the operations that change colours are among them.
    """
    shear, degrees, factor = (_strength(full, m) for full in (0.3, 30, 0.9))
    far_x, far_y = (int(_strength(150 / 331 * side, m)) for side in (width, height))
    spatial = [
        _pair(lambda sign: partial(_shear, x=sign * shear)),
        _pair(lambda sign: partial(_shear, y=sign * shear)),
        _pair(lambda sign: partial(_moved, x=sign * far_x)),
        _pair(lambda sign: partial(_moved, y=sign * far_y)),
        _pair(lambda sign: partial(_turned, degrees=sign * degrees)),
    ]
    same: list[tuple[Operation, Operation]] = [(_unchanged, _unchanged)]
    if not colour:
        return [operation for both in (*same, *spatial) for operation in both]
    bits = 8 - round(m / ((BINS - 1) / 4))
    threshold = 255 * float(torch.linspace(1.0, 0.0, BINS)[m])
    coloured = [
        _pair(lambda sign: partial(F.adjust_brightness, brightness_factor=1 + sign * factor)),
        _pair(lambda sign: partial(F.adjust_saturation, saturation_factor=1 + sign * factor)),
        _pair(lambda sign: partial(F.adjust_contrast, contrast_factor=1 + sign * factor)),
        _pair(lambda sign: partial(F.adjust_sharpness, sharpness_factor=1 + sign * factor)),
        _pair(lambda sign: partial(F.posterize, bits=bits)),
        _pair(lambda sign: partial(F.solarize, threshold=threshold)),
        _pair(lambda sign: F.autocontrast),
        _pair(lambda sign: F.equalize),
    ]
    return [operation for both in (*same, *spatial, *coloured) for operation in both]


def rand_augment(
    images: Tensor,
    recipe: RandAugment,
    generator: torch.Generator,
    *,
    here: slice = slice(None),
    total: int | None = None,
) -> Tensor:
    """Change each image by `recipe.n` operations drawn for it, one after the other.

    Parameters
    ----------
    images : uint8 Tensor [image, channel, y, x]
    recipe : RandAugment
    generator : torch.Generator
        On the CPU.
    here, total : slice, int, optional
        Where the images are in the step's, and how many those are; draws are for all of them.

    Returns
    -------
    uint8 Tensor [image, channel, y, x]

    References
    ----------
    Cubuk et al., "RandAugment", arXiv 1909.13719.
    """
    choices = operations(recipe.m, *images.shape[-2:], colour=recipe.colour)
    shape = (recipe.n, len(images) if total is None else total)
    drawn = torch.randint(0, len(choices), shape, generator=generator)[:, here]
    for row in drawn:
        changed = images.clone()
        for number in row.unique().tolist():
            chosen = (row == number).nonzero().flatten().to(images.device)
            changed[chosen] = choices[number](images[chosen])
        images = changed
    return images


def _strength(full: float, m: int) -> float:
    return float(torch.linspace(0.0, full, BINS)[m])


def _pair(make: Callable[[int], Operation]) -> tuple[Operation, Operation]:
    return make(1), make(-1)


def _unchanged(images: Tensor) -> Tensor:
    return images


def _shear(images: Tensor, *, x: float = 0.0, y: float = 0.0) -> Tensor:
    # about the corner, and by the angle whose tangent the strength is, as torchvision does
    degrees = [math.degrees(math.atan(side)) for side in (x, y)]
    return _affine(images, shear=degrees, center=[0, 0])


def _moved(images: Tensor, *, x: int = 0, y: int = 0) -> Tensor:
    return _affine(images, translate=[x, y])


def _affine(
    images: Tensor,
    *,
    shear: list[float] | None = None,
    translate: list[int] | None = None,
    center: list[float] | None = None,
) -> Tensor:
    changed: Tensor = F.affine(
        images,
        angle=0.0,
        translate=translate or [0, 0],
        scale=1.0,
        shear=shear or [0.0, 0.0],
        interpolation=InterpolationMode.NEAREST,
        center=center,
    )
    return changed


def _turned(images: Tensor, *, degrees: float) -> Tensor:
    turned: Tensor = F.rotate(images, degrees, interpolation=InterpolationMode.NEAREST)
    return turned
