"""From an image source to what the loop eats: all images as one uint8 tensor, where the model is.

A small data set is decoded once; every epoch then costs an index and the augmentation of a batch.
`stream` has the other way, for data sets that memory does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import DataError
from polysem.models.transform import Transform
from polysem.train.order import Part

__all__ = ["ImageSet", "LabelledImages", "class_names", "decode", "decoded_bytes"]

MEMORY_LIMIT = 8 * 2**30
"""Bytes of decoded images that training keeps in memory; a larger data set is streamed."""

_CHUNK = 512


class ImageSet(Protocol):
    """Labelled images, wherever they are kept."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 [image], on the device."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def name(self) -> str:
        """The spec of the data."""

    @property
    def fingerprint(self) -> str:
        """The content hash of the data."""

    def __len__(self) -> int: ...

    def batches(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Yield the pixels of each part, uint8 [image, channel, y, x], on the device."""


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

    def batches(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Yield the pixels of each part, uint8 [image, channel, y, x]."""
        for part in parts:
            yield self.pixels[part.indices.to(self.pixels.device)]


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
    classes = class_names(data)
    n_images, n_bytes = len(data), decoded_bytes(data, transform)
    if n_bytes > MEMORY_LIMIT:
        raise DataError(
            f"{data.name} would take {n_bytes / 2**30:.1f} GiB decoded, more than the "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB that training keeps in memory; leave data.stream out, "
            "or set data.train_limit or data.test_limit"
        )
    pixels = torch.empty((n_images, 3, *transform.size), dtype=torch.uint8)
    for start in range(0, n_images, _CHUNK):
        stop = min(start + _CHUNK, n_images)
        pixels[start:stop] = _read(data, transform, start, stop)
        report(stop, n_images)
    return LabelledImages(
        pixels=pixels.to(device),
        labels=torch.as_tensor(data.labels, dtype=torch.int64).to(device),
        classes=classes,
        name=data.name,
        fingerprint=data.fingerprint,
    )


def decoded_bytes(data: ImageData, transform: Transform) -> int:
    """Return how much memory the images take at the model's size."""
    return len(data) * 3 * transform.size[0] * transform.size[1]


def class_names(data: ImageData) -> tuple[str, ...]:
    """Return the names of the classes, numbers where they have none.

    Raises
    ------
    DataError
        If there are no images or labels.
    """
    if data.labels is None:
        raise DataError(f"{data.name} has no labels, so there is nothing to learn from it")
    if not len(data):
        raise DataError(f"{data.name} has no images")
    return data.classes or tuple(map(str, range(int(data.labels.max()) + 1)))


def _read(data: ImageData, transform: Transform, start: int, stop: int) -> Tensor:
    return torch.stack([transform(data.read(number)) for number in range(start, stop)])
