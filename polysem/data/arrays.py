"""Images that are stored as plain arrays of bytes, block by block: CIFAR and MedMNIST archives."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from polysem.data.blocks import Block, BlockReader
from polysem.data.dataset import ImageData
from polysem.data.fingerprint import data_sha256

__all__ = ["ArrayData", "Pixels"]

#: uint8 pixels of several images: [image, y, x] grey, or [image, y, x, 3] RGB.
Pixels = npt.NDArray[np.uint8]


class ArrayData(ImageData):
    """Images from arrays that are read a block at a time.

    Parameters
    ----------
    name, keys, labels, classes
        As in `ImageData`.
    counts : sequence of int
        Number of images in each part of the archive, in order.
    open_part : callable
        Given the number of a part, yields its images in order, in blocks of `Pixels`.
        Must pickle.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        counts: Sequence[int],
        open_part: Callable[[int], Generator[Block[Pixels], None, None]],
        labels: npt.NDArray[Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, keys, labels=labels, classes=classes)
        self._blocks = BlockReader(counts, open_part)

    def read(self, index: int) -> Image.Image:
        """Return image number `index`; grey becomes RGB with three equal channels."""
        pixels, at = self._blocks.fetch(index)
        return Image.fromarray(pixels[at]).convert("RGB")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of keys, labels, class names and pixels, however they are packed."""
        return data_sha256(self, (block.rows.tobytes() for block in self._blocks.stream()))
