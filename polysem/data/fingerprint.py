"""One hash that tells whether two data sets show a network the same; recorded in every run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from polysem.data.dataset import ImageData
from polysem.errors import DataError, MissingError

__all__ = ["data_sha256", "file_chunks"]

_CHUNK_BYTES = 2**20


def data_sha256(data: ImageData, content: Iterable[bytes]) -> str:
    """Return the SHA-256 (hex) of what a data set holds.

    Goes in: every key in order, every label, the class names, and whatever bytes the reader
    streams as the content of its images.
    """
    digest = hashlib.sha256()
    for words in (data.keys, data.classes or ()):
        for word in words:
            digest.update(word.encode() + b"\0")
        digest.update(b"\n")
    if data.labels is not None:
        digest.update(data.labels.astype("<i8").tobytes())
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


def file_chunks(paths: Iterable[Path]) -> Iterator[bytes]:
    """Yield the content of files piece by piece, each preceded by its size.

    Raises
    ------
    MissingError
        If a file is gone.
    DataError
        If a file cannot be read.
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                yield b"%d\n" % os.fstat(file.fileno()).st_size
                while piece := file.read(_CHUNK_BYTES):
                    yield piece
        except FileNotFoundError:
            raise MissingError(f"{path} was there when the data was opened but is gone") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
