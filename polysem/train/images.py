"""From an image source to what the loop eats: all images as one uint8 tensor, where the model is.

A small data set is decoded once; every epoch then costs an index and the augmentation of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import DataError
from polysem.models.transform import Transform

__all__ = ["LabelledImages", "decode", "epoch_order", "generator_for", "permuted"]

MEMORY_LIMIT = 8 * 2**30
"""Bytes of decoded images beyond which a data set is refused rather than swap the machine dead."""

_CHUNK = 512


@dataclass(frozen=True)
class LabelledImages:
    """A data set in memory.

    Attributes
    ----------
    pixels : uint8 Tensor [image, channel, y, x]
    labels : int64 Tensor [image]
    classes : tuple of str
    name, fingerprint : str
        The spec and the content hash of the data.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)


def decode(
    data: ImageData,
    transform: Transform,
    *,
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> LabelledImages:
    """Read every image once, bring it to the model's size, and keep it as uint8 on `device`.

    Parameters
    ----------
    data : ImageData
        With labels.
    transform : Transform
        Of the model; its normalisation is left for later, batch by batch.
    device : torch.device
    report : callable, optional
        Called as ``report(images done, images in all)`` now and then.

    Raises
    ------
    DataError
        If there are no images or labels, or more images than memory should hold.
    ImageError
        If an image cannot be read.
    """
    n_images = len(data)
    if data.labels is None:
        raise DataError(f"{data.name} has no labels, so there is nothing to learn from it")
    if not n_images:
        raise DataError(f"{data.name} has no images")
    n_bytes = n_images * 3 * transform.size[0] * transform.size[1]
    if n_bytes > MEMORY_LIMIT:
        raise DataError(
            f"{data.name} would take {n_bytes / 2**30:.1f} GiB decoded, more than the "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB that training keeps in memory; "
            "set data.train_limit or data.test_limit"
        )
    pixels = torch.empty((n_images, 3, *transform.size), dtype=torch.uint8)
    for start in range(0, n_images, _CHUNK):
        stop = min(start + _CHUNK, n_images)
        pixels[start:stop] = _read(data, transform, start, stop)
        report(stop, n_images)
    n_classes = int(data.labels.max()) + 1
    return LabelledImages(
        pixels=pixels.to(device),
        labels=torch.as_tensor(data.labels, dtype=torch.int64).to(device),
        classes=data.classes or tuple(map(str, range(n_classes))),
        name=data.name,
        fingerprint=data.fingerprint,
    )


def _read(data: ImageData, transform: Transform, start: int, stop: int) -> Tensor:
    return torch.stack([transform(data.read(number)) for number in range(start, stop)])


def permuted(labels: Tensor, seed: int) -> Tensor:
    """Return the labels [image] dealt anew at random; every class keeps its number of images."""
    order = torch.randperm(len(labels), generator=generator_for(seed, "labels", 0))
    return labels[order.to(labels.device)]


def epoch_order(seed: int, epoch: int, n_images: int) -> Tensor:
    """Return the order in which epoch number `epoch` shows the images: [image], on the CPU.

    A function of its arguments alone, so that a resumed training needs no state of the data.
    """
    return torch.randperm(n_images, generator=generator_for(seed, "order", epoch))


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose ("order", …) and one epoch or step."""
    words = np.random.SeedSequence([seed, number, *purpose.encode()]).generate_state(2)
    generator = torch.Generator()
    generator.manual_seed(int(words[0]) << 31 ^ int(words[1]))
    return generator
