"""Images decoded once and looked at several times: by one snapshot of a network after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import ImageError
from polysem.probe.batches import Decoded, batches
from polysem.store.writer import disk_errors

__all__ = ["KeptImages"]


class KeptImages:
    """Give the same batches of images again and again, decoded the first time only.

    Close it in the end, as by `contextlib.closing`. Pixels are kept in a file that nobody else sees
    and that is gone when the process ends, however it ends; memory does not grow with the data.

    Parameters
    ----------
    source, transform, batch_size, workers, pin, strict
        As in `batches`.
    folder : Path
        On whose disk the pixels are kept: as many bytes as all images have in memory.
    """

    def __init__(
        self,
        source: ImageData,
        transform: Callable[[Image.Image], Tensor],
        batch_size: int,
        *,
        folder: Path,
        workers: int = 0,
        pin: bool = False,
        strict: bool = False,
    ) -> None:
        self._source, self._transform, self._batch_size = source, transform, batch_size
        self._folder, self._workers, self._pin, self._strict = folder, workers, pin, strict
        self._file: IO[bytes] | None = None
        self._read: list[tuple[list[int], list[ImageError]]] | None = None
        self._shape: tuple[int, ...] = ()

    def close(self) -> None:
        """Let go of the pixels."""
        if self._file is not None:
            self._file.close()
        self._file, self._read = None, None

    def batches(self, other: Callable[[Image.Image], Tensor] | None = None) -> Iterator[Decoded]:
        """Yield all batches in order.

        Parameters
        ----------
        other : callable, optional
            A second transform of the same pictures, which are then read anew if need be.
        """
        if other is None and self._read is not None:
            return self._again()
        return self._decode(other)

    def _decode(self, other: Callable[[Image.Image], Tensor] | None) -> Iterator[Decoded]:
        """Read pictures; what is kept counts once the last batch has been given."""
        self.close()
        read = []
        with disk_errors(self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        for decoded in batches(
            self._source, self._transform, self._batch_size, other=other, workers=self._workers,
            pin=self._pin, strict=self._strict,
        ):  # fmt: skip
            read.append((decoded.indices, decoded.skipped))
            if decoded.pixels is not None:
                self._shape = tuple(decoded.pixels.shape[1:])
                with disk_errors(self._folder):
                    self._file.write(decoded.pixels.contiguous().numpy().data)
            yield decoded
        with disk_errors(self._folder):
            self._file.flush()
        self._read = read

    def _again(self) -> Iterator[Decoded]:
        assert self._file is not None and self._read is not None
        size, first = int(np.prod(self._shape)), 0
        for indices, skipped in self._read:
            if not indices:
                yield Decoded(indices, None, skipped)
                continue
            self._file.seek(first * size)
            taken = bytearray(self._file.read(len(indices) * size))
            pixels = torch.frombuffer(taken, dtype=torch.uint8).view(-1, *self._shape)
            first += len(indices)
            yield Decoded(indices, pixels.pin_memory() if self._pin else pixels, skipped)
