"""Images in batches: read, transformed and stacked, with what cannot be read set aside."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polysem.data.dataset import ImageData
from polysem.errors import DataError, ImageError, PolysemError

__all__ = ["Decoded", "batches", "reading_errors"]


@dataclass(frozen=True)
class Decoded:
    """Some images of the data, in order.

    Attributes
    ----------
    indices : list of int
        Which images were read.
    pixels : Tensor or None
        uint8 [image, channel, y, x]; None if none could be read.
    skipped : list of ImageError
        Those that could not.
    other_pixels : Tensor or None
        The same images as an encoder takes them, uint8 [image, channel, y, x].
    """

    indices: list[int]
    pixels: Tensor | None
    skipped: list[ImageError]
    other_pixels: Tensor | None = None


def batches(
    source: ImageData,
    transform: Callable[[Image.Image], Tensor],
    batch_size: int,
    *,
    other: Callable[[Image.Image], Tensor] | None = None,
    workers: int = 0,
    pin: bool = False,
    strict: bool = False,
    span: range | None = None,
) -> Iterator[Decoded]:
    """Yield the images of `source` in order.

    Parameters
    ----------
    source : ImageData
        The images.
    transform : callable
        From a PIL image to uint8 [channel, y, x], the same size for all.
    batch_size : int
        Images per batch, those that cannot be read counted.
    other : callable, optional
        A second such transform, of the same picture.
    workers : int, default 0
        Processes that read and transform.
    pin : bool, default False
        Put pixels where a GPU can fetch them without a wait.
    strict : bool, default False
        Raise the first ImageError instead of setting the image aside.
    span : range, optional
        Which images; all of them where not given.

    Raises
    ------
    PolysemError
        If the data are gone or damaged as a whole. See also `reading_errors`.
    """
    loader = DataLoader(
        _Readable(source, transform, other),
        sampler=range(len(source)) if span is None else span,
        batch_size=batch_size,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=False,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # the global random state is the user's
    )
    for decoded in _ended_in_time(loader):
        if isinstance(decoded, PolysemError):
            raise decoded
        if strict and decoded.skipped:
            raise decoded.skipped[0]
        if pin and decoded.pixels is not None:
            others = decoded.other_pixels
            decoded = Decoded(
                decoded.indices,
                decoded.pixels.pin_memory(),
                decoded.skipped,
                None if others is None else others.pin_memory(),
            )
        yield decoded


@contextmanager
def reading_errors(name: str) -> Iterator[None]:
    """Put in words that a process which reads images has died: torch raises it anywhere inside.

    Raises
    ------
    DataError
        If one was ended from outside.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        told = re.search(r"DataLoader worker .*(killed|exited)", str(error))
        if isinstance(error, RuntimeError) and not told:
            raise
        raise DataError(
            f"a process that reads images of {name} was ended from outside, most often for want "
            "of memory; try fewer --workers, or none"
        ) from None


def _ended_in_time(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield what a loader does; its workers end with it, not when the last reference goes."""
    found = iter(loader)
    try:
        yield from found
    finally:
        if hasattr(found, "_shutdown_workers"):
            found._shutdown_workers()


class _Readable(Dataset[Any]):
    """Images as (index, pixels of each transform) or (index, why not).

    What concerns more than one image is handed on as it is: raised in a worker it would lose its
    words to a traceback.
    """

    def __init__(
        self,
        source: ImageData,
        transform: Callable[[Image.Image], Tensor],
        other: Callable[[Image.Image], Tensor] | None,
    ) -> None:
        self.source = source
        self.transforms = (transform,) if other is None else (transform, other)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, tuple[Tensor, ...] | PolysemError]:
        try:
            image = self.source.read(index)
        except PolysemError as error:
            return index, error
        return index, tuple(transform(image) for transform in self.transforms)


def _collate(items: list[tuple[int, tuple[Tensor, ...] | PolysemError]]) -> Decoded | PolysemError:
    for _, item in items:
        if isinstance(item, PolysemError) and not isinstance(item, ImageError):
            return item
    read = [(i, item) for i, item in items if not isinstance(item, PolysemError)]
    stacks = [torch.stack(pixels) for pixels in zip(*(item for _, item in read), strict=True)]
    return Decoded(
        indices=[i for i, _ in read],
        pixels=stacks[0] if stacks else None,
        skipped=[item for _, item in items if isinstance(item, ImageError)],
        other_pixels=stacks[1] if len(stacks) > 1 else None,
    )


def _ignore_interrupts(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the probe ends its workers itself
