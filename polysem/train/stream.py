"""Images that memory does not hold: read anew in every epoch by worker processes, ahead of need.

The order is the loop's, and what is random about an image follows from its place in the training,
not from the worker that happens to read it: the pixels are those that memory would have given.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polysem import _torchvision
from polysem.data.dataset import ImageData
from polysem.errors import ImageError
from polysem.models.transform import Transform
from polysem.train.order import Part, seeded

_torchvision.repair()

from timm.data.transforms import RandomResizedCropAndInterpolation  # noqa: E402

__all__ = ["RandomCrop", "StreamedImages", "default_workers"]

_MOST_WORKERS = 8


@dataclass(frozen=True)
class RandomCrop:
    """Cuts a random part out of a picture and scales it to the model's size (timm's).

    Attributes
    ----------
    transform : Transform
        Of the model: gives size and interpolation.
    scale : (float, float)
        Smallest and largest share of the picture's area.
    seed : int
    """

    transform: Transform
    scale: tuple[float, float]
    seed: int

    def __call__(self, image: Image.Image, number: int) -> Tensor:
        """Return uint8 [channel, y, x]; the part follows from seed and number of the showing."""
        crop = RandomResizedCropAndInterpolation(
            self.transform.size, scale=self.scale, interpolation=self.transform.interpolation
        )
        with seeded(self.seed, "crop", number):
            pixels = np.array(crop(image))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class StreamedImages:
    """A data set that is read while the training runs.

    Attributes
    ----------
    data : ImageData
    transform : Transform
        Of the model.
    labels : int64 Tensor [image]
        On the device that images are brought to.
    classes : tuple of str
    workers : int
        Processes that read; 0 reads in this one.
    crop : RandomCrop or None
        Takes the place of the transform where set.
    """

    data: ImageData
    transform: Transform
    labels: Tensor
    classes: tuple[str, ...]
    workers: int = 0
    crop: RandomCrop | None = None

    @property
    def name(self) -> str:
        """The spec of the data."""
        return self.data.name

    @cached_property
    def fingerprint(self) -> str:
        """The content hash of the data."""
        return self.data.fingerprint

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Yield the pixels of each part, uint8 [image, channel, y, x], on the device.

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        on_gpu = self.labels.is_cuda
        fork = self.workers and "fork" in multiprocessing.get_all_start_methods()
        loader: DataLoader[Tensor | ImageError] = DataLoader(
            _Pictures(self.data, self.transform, self.crop),
            batch_sampler=_Showings(parts),
            collate_fn=_stacked,
            num_workers=self.workers,
            multiprocessing_context="fork" if fork else None,
            pin_memory=on_gpu,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_quiet,
            generator=torch.Generator(),  # the global one is the network's, for dropout
        )
        for pixels in loader:
            if isinstance(pixels, ImageError):
                raise pixels
            yield pixels.to(self.labels.device, non_blocking=on_gpu)


def default_workers() -> int:
    """Return how many workers read for this process: its share of the cores but one, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by the launcher
    return max(1, min(((cores or 1) - 1) // beside, _MOST_WORKERS))


class _Pictures(Dataset[Any]):
    """Pixels by (index, number of the showing), or why there are none."""

    def __init__(self, data: ImageData, transform: Transform, crop: RandomCrop | None) -> None:
        self.data, self.transform, self.crop = data, transform, crop

    def __getitem__(self, showing: tuple[int, int]) -> Tensor | ImageError:
        index, number = showing
        try:
            image = self.data.read(index)
        except ImageError as error:
            return error
        return self.transform(image) if self.crop is None else self.crop(image, number)


@dataclass(frozen=True)
class _Showings:
    """What the loader reads next: (index, number of the showing) of each image of each part."""

    parts: Iterable[Part]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for part in self.parts:
            first = part.step * part.total + part.first
            yield list(zip(part.indices.tolist(), range(first, first + len(part)), strict=True))


def _stacked(items: list[Tensor | ImageError]) -> Tensor | ImageError:
    refused = next((item for item in items if isinstance(item, ImageError)), None)
    return refused or torch.stack([item for item in items if isinstance(item, Tensor)])


def _quiet(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training ends its workers itself
    torch.set_num_threads(1)
