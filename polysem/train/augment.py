"""Between stored images and the network: random changes of a whole uint8 batch, where it lies.

Nothing here knows about the class: a recipe switches on what leaves its labels true.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polysem.train.recipe import Augment

__all__ = ["augment"]


def augment(images: Tensor, recipe: Augment, generator: torch.Generator) -> Tensor:
    """Return the batch with each image changed at random, by draws of its own.

    Parameters
    ----------
    images : uint8 Tensor [image, channel, y, x]
    recipe : Augment
        `crop_padding` shifts by up to so many pixels either way (black moves in), `turn` rotates
        by a random multiple of 90° (square images only), `flip` mirrors left and right every
        other time. With all off the batch is returned as it is.
    generator : torch.Generator
        On the CPU, whatever device the images are on, so that every device draws alike.

    Returns
    -------
    uint8 Tensor [image, channel, y, x]
    """
    n_images = len(images)
    if recipe.crop_padding:
        shift = torch.randint(0, 2 * recipe.crop_padding + 1, (2, n_images), generator=generator)
        images = _shifted(images, shift.to(images.device), recipe.crop_padding)
    if recipe.turn:
        quarters = torch.randint(0, 4, (n_images,), generator=generator).to(images.device)
        images = _turned(images, quarters)
    if recipe.flip:
        mirrored = torch.randint(0, 2, (n_images,), generator=generator).to(images.device)
        images = torch.where(mirrored.bool()[:, None, None, None], images.flip(-1), images)
    return images


def _shifted(images: Tensor, shift: Tensor, padding: int) -> Tensor:
    n_images, n_channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    device = images.device
    y = shift[0, :, None] + torch.arange(height, device=device)
    x = shift[1, :, None] + torch.arange(width, device=device)
    image = torch.arange(n_images, device=device)[:, None, None, None]
    channel = torch.arange(n_channels, device=device)[None, :, None, None]
    return padded[image, channel, y[:, None, :, None], x[:, None, None, :]]


def _turned(images: Tensor, quarters: Tensor) -> Tensor:
    turned = images.clone()
    for quarter in (1, 2, 3):
        chosen = quarters == quarter
        turned[chosen] = images[chosen].rot90(quarter, (-2, -1))
    return turned
