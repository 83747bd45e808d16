"""Between stored images and the network: random changes of a whole uint8 batch, where it lies.

Nothing here knows about the class: a recipe switches on what leaves its labels true.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polysem import _torchvision
from polysem.train.inputs import Augment
from polysem.train.order import Part, generator_for, seeded
from polysem.train.randaugment import rand_augment

_torchvision.repair()

from timm.data import Mixup  # noqa: E402
from timm.data.random_erasing import RandomErasing  # noqa: E402

__all__ = ["augment", "augment_part", "mix"]


def augment_part(images: Tensor, recipe: Augment, part: Part, seed: int) -> Tensor:
    """Return the images of a part changed at random, as seed, step and place in the step decide.

    Which rectangles go black follows from the part as a whole, hence from the number of
    processes; all else is the same whatever that number.

    Parameters
    ----------
    images : uint8 Tensor [image, channel, y, x]
    recipe : Augment
        See `augment`, after which come `randaugment` and `erasing` (timm's, on pixels).
    part : Part
    seed : int
    """
    draws = generator_for(seed, "augment", part.step)
    images = augment(images, recipe, draws, here=part.here, total=part.total)
    if recipe.randaugment is not None:
        draws = generator_for(seed, "randaugment", part.step)
        images = rand_augment(images, recipe.randaugment, draws, here=part.here, total=part.total)
    if recipe.erasing:
        erase = RandomErasing(recipe.erasing, mode="const", device=images.device)
        with seeded(seed, f"erasing {part.first}", part.step):
            images = erase(images.clone())
    return images


def mix(
    images: Tensor, labels: Tensor, alpha: float, part: Part, *, seed: int, n_classes: int
) -> tuple[Tensor, Tensor]:
    """Mix each image with the one at the mirrored place of the part (timm's mixup).

    Parameters
    ----------
    images : float Tensor [image, channel, y, x]
        As the network takes them; of the channels x and 1 − x the sums stay 1. Written over.
    labels : int64 Tensor [image]
    alpha : float
        Of the Beta distribution that one share λ is drawn from, the same for a whole step.
    part : Part
    seed, n_classes : int

    Returns
    -------
    Tensor
        λ · image + (1 − λ) · the other.
    Tensor
        Labels mixed alike, float [image, class]; without label smoothing.

    References
    ----------
    Zhang et al., "mixup", arXiv 1710.09412.
    """
    mixup = Mixup(mixup_alpha=alpha, label_smoothing=0.0, num_classes=n_classes)
    with seeded(seed, "mixup", part.step):
        mixed, targets = mixup(images, labels)
    return mixed, targets


def augment(
    images: Tensor,
    recipe: Augment,
    generator: torch.Generator,
    *,
    here: slice = slice(None),
    total: int | None = None,
) -> Tensor:
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
    here, total : slice, int, optional
        Where the images are in the step's, and how many those are; draws are for all of them.

    Returns
    -------
    uint8 Tensor [image, channel, y, x]
    """
    n_images = len(images) if total is None else total
    if recipe.crop_padding:
        steps = 2 * recipe.crop_padding + 1
        shift = torch.randint(0, steps, (2, n_images), generator=generator)[:, here]
        images = _shifted(images, shift.to(images.device), recipe.crop_padding)
    if recipe.turn:
        quarters = torch.randint(0, 4, (n_images,), generator=generator)[here].to(images.device)
        images = _turned(images, quarters)
    if recipe.flip:
        mirrored = torch.randint(0, 2, (n_images,), generator=generator)[here].to(images.device)
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
