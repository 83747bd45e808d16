"""Drawn images with what they show, and views of them: the whole image, or a part enlarged.

Whether a part still shows an object is known from the pixels that are its own, so that phrases
about a view are as true as those about the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polysem.data.dataset import ImageData
from polysem.data.layout import MOST_THINGS
from polysem.data.shapes import Shapes
from polysem.errors import DataError, RecipeError
from polysem.models.transform import Transform
from polysem.train.images import LabelledImages, class_names

__all__ = ["Captioned", "Seen", "caption_truth", "cut", "random_boxes", "whole"]

#: An object of which a view holds a larger share than the second is there, and of which it holds
#: less than the first is not; between the two it counts as neither.
ABSENT, PRESENT = 0.12, 0.6
#: The background is there where it takes more than this share of a view.
GROUND = 0.2

_CHUNK = 256
_SMALLEST = 0.19  # side of a view, as a share of the image's
_AROUND_OBJECT = 0.6  # share of the parts that are cut around one object


@dataclass(frozen=True)
class Seen:
    """What views show: what they surely show, and what they may.

    Attributes
    ----------
    things, possible_things : int64 Tensor [image, thing, 4]
        As in `Shapes.objects`; -1 for what is out of view.
    background, possible_background : int64 Tensor [image]
        -1 where too little of it is in view.
    """

    things: Tensor
    background: Tensor
    possible_things: Tensor
    possible_background: Tensor


@dataclass(frozen=True)
class Captioned(LabelledImages):
    """Drawn images in memory, with all that can be said about them.

    Attributes
    ----------
    things : int64 Tensor [image, thing, 4]
    background : int64 Tensor [image]
        As in `Shapes.objects`.
    owners : uint8 Tensor [image, y, x]
        As in `Shapes.owners`.
    """

    things: Tensor
    background: Tensor
    owners: Tensor


def caption_truth(
    data: ImageData,
    transform: Transform,
    *,
    device: torch.device,
    report: Callable[[str, int, int], None] = lambda spec, done, total: None,
) -> Captioned:
    """Draw all images and keep them on `device`, with the truth about them.

    Raises
    ------
    DataError
        If the data is not drawn, so that nobody knows what it shows.
    RecipeError
        If images and model are of different sizes.
    """
    if not isinstance(data, Shapes):
        raise DataError(
            f"contrast learns phrases about drawn images (shapes:train?n=…), of which all is "
            f"known; what {data.name} shows is not"
        )
    if transform.size != (data.size, data.size):
        raise RecipeError(
            f"{data.name} has images of {data.size} pixels and the model takes "
            f"{transform.size[1]} × {transform.size[0]}; give size={transform.size[0]} in the "
            "data, or another image_size in model.args.vision_cfg"
        )
    n_images = len(data)
    pixels = torch.empty((n_images, 3, data.size, data.size), dtype=torch.uint8)
    owners = torch.empty((n_images, data.size, data.size), dtype=torch.uint8)
    for start in range(0, n_images, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, n_images))
        drawn, _ = data.array(numbers)
        pixels[numbers] = torch.from_numpy(drawn).permute(0, 3, 1, 2)
        owners[numbers] = torch.from_numpy(np.stack([data.owners(int(n)) for n in numbers]))
        report(data.name, int(numbers[-1]) + 1, n_images)
    things, background = data.objects()
    return Captioned(
        pixels=pixels.to(device),
        labels=torch.as_tensor(data.labels, dtype=torch.int64).to(device),
        classes=class_names(data),
        name=data.name,
        fingerprint=data.fingerprint,
        things=torch.from_numpy(things).to(device),
        background=torch.from_numpy(background).to(device),
        owners=owners.to(device),
    )


def whole(things: Tensor, background: Tensor) -> Seen:
    """Return what whole images show: all of it."""
    return Seen(things, background, things, background)


def random_boxes(owners: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return the view of each image as left, top and side [image, 3], in image sides.

    Parameters
    ----------
    owners : uint8 Tensor [image, y, x]
        Square.
    share : float
        Of images that are cut: most often around an object, which then takes a side between all
        and 40 % of the view, else anywhere. The others stay whole.
    generator : torch.Generator
        On the CPU.
    """
    n_images, size = len(owners), owners.shape[-1]
    lots = torch.rand((n_images, 6), generator=generator).to(owners.device)
    low, high = _extent(owners, lots[:, 0])
    longest = (high - low).amax(1)
    around = (lots[:, 1] < share * _AROUND_OBJECT) & (longest > 0)
    anywhere = ~around & (lots[:, 1] < share)
    side = torch.ones_like(longest)
    side = torch.where(around, longest / size * (1 + 1.5 * lots[:, 2]), side)
    side = torch.where(anywhere, 0.3 + 0.7 * lots[:, 2], side).clamp(_SMALLEST, 1)
    jitter = (lots[:, 3:5] - 0.5) * 0.4 * longest[:, None] / size
    middle = torch.where(around[:, None], (low + high) / 2 / size + jitter, lots[:, 3:5])
    corner = (middle - side[:, None] / 2).clamp(min=0)
    corner = torch.minimum(corner, 1 - side[:, None])
    return torch.cat([corner, side[:, None]], dim=1)


def _extent(owners: Tensor, lot: Tensor) -> tuple[Tensor, Tensor]:
    """Return first and last pixel [image, (x, y)] of an object of each image, as the lot decides.

    Of images without objects both are 0.
    """
    mine = owners[:, None] == torch.arange(1, MOST_THINGS + 1).to(owners)[:, None, None]
    there = mine.any(3).any(2)
    rank = (lot[:, None] * there.sum(1, keepdim=True)).long()  # which of those that are there
    chosen = (there & (there.cumsum(1) - 1 == rank)).float().argmax(1)
    mask = mine[torch.arange(len(owners), device=owners.device), chosen]
    along = torch.stack([mask.any(1), mask.any(2)], dim=1).float()
    low = along.argmax(2)
    high = along.shape[2] - along.flip(2).argmax(2)
    found = there.any(1)[:, None]
    return (low * found).float(), (high * found).float()


def cut(pixels: Tensor, owners: Tensor, seen: Seen, boxes: Tensor) -> tuple[Tensor, Seen]:
    """Enlarge a part of each image to its full size, and say what the part shows.

    Parameters
    ----------
    pixels : uint8 Tensor [image, channel, y, x]
    owners : uint8 Tensor [image, y, x]
    seen : Seen
        What the whole images show.
    boxes : Tensor [image, 3]
        From `random_boxes`.

    Returns
    -------
    uint8 Tensor [image, channel, y, x]
        Bicubic; at whole images the very same.
    Seen
    """
    _, _, height, width = pixels.shape
    within = (torch.arange(width, device=pixels.device) + 0.5) / width
    x, y = (boxes[:, axis, None] + within * boxes[:, 2, None] for axis in (0, 1))
    grid = torch.stack(
        [x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3
    )
    larger = F.grid_sample(
        pixels.float(), 2 * grid - 1, mode="bicubic", padding_mode="border", align_corners=False
    )
    share, ground = _in_view(owners, boxes, within)
    sure = (share > PRESENT)[:, :, None]
    possible = (share > ABSENT)[:, :, None]
    return larger.round().clamp(0, 255).to(torch.uint8), Seen(
        things=torch.where(sure, seen.things, -1),
        background=torch.where(ground > GROUND, seen.background, -1),
        possible_things=torch.where(possible, seen.things, -1),
        possible_background=seen.background,
    )


def _in_view(owners: Tensor, boxes: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each object that is in view [image, thing], and of the view's ground."""
    in_x, in_y = (
        ((within >= boxes[:, axis, None]) & (within <= boxes[:, axis, None] + boxes[:, 2, None]))
        for axis in (0, 1)
    )
    mine = (owners[:, None] == torch.arange(MOST_THINGS + 1).to(owners)[:, None, None]).float()
    inside = torch.einsum("noyx,ny,nx->no", mine, in_y.float(), in_x.float())
    share = inside[:, 1:] / mine[:, 1:].sum((2, 3)).clamp(min=1)
    return share, inside[:, 0] / inside.sum(1).clamp(min=1)
