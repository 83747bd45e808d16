"""From an image source to an `ImageSet`: in memory where it fits, streamed where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from polysem.data.dataset import ImageData
from polysem.models.transform import Transform
from polysem.processes import Processes
from polysem.train import images
from polysem.train.images import ImageSet, LabelledImages, class_names, decode, decoded_bytes
from polysem.train.order import permuted
from polysem.train.recipe import Recipe
from polysem.train.stream import RandomCrop, StreamedImages, default_workers

__all__ = ["hold"]


def hold(
    data: ImageData,
    transform: Transform,
    recipe: Recipe,
    group: Processes,
    *,
    classes: tuple[str, ...] | None = None,
    report: Callable[[str, int, int], None],
    training: bool,
) -> ImageSet:
    """Return the images as the recipe has them kept, their labels permuted if it says so.

    Parameters
    ----------
    data : ImageData
    transform : Transform
        Of the model.
    recipe : Recipe
    group : Processes
    classes : tuple of str, optional
        Names of the classes where `data` has none of its own and may not show them all.
    report : callable
        Called as ``report(spec, images read, images in all)`` while images are read.
    training : bool
        Whether they are learned from; random crops and permuted labels are for these only.

    Raises
    ------
    DataError
        If there are no images or labels, or more images than memory should hold where the recipe
        asks for that.
    ImageError
        If an image cannot be read.
    """
    scale = recipe.augment.resized_crop if training else None
    held: LabelledImages | StreamedImages
    if _streams(data, transform, recipe.data.stream, crops=scale is not None):
        held = StreamedImages(
            data=data,
            transform=transform,
            labels=torch.as_tensor(data.labels, dtype=torch.int64).to(group.device),
            classes=class_names(data),
            workers=default_workers() if recipe.workers is None else recipe.workers,
            crop=None if scale is None else RandomCrop(transform, scale, recipe.seed),
        )
    else:
        held = decode(
            data,
            transform,
            device=group.device,
            report=lambda done, total: report(data.name, done, total),
        )
    if training and recipe.data.permute_labels:
        held = replace(held, labels=permuted(held.labels, recipe.seed))
    return held if classes is None else replace(held, classes=classes)


def _streams(data: ImageData, transform: Transform, asked: bool | None, *, crops: bool) -> bool:
    """Say whether images are read anew in every epoch; a random crop needs the whole picture."""
    if asked is None:
        return crops or decoded_bytes(data, transform) > images.MEMORY_LIMIT
    return asked or crops
