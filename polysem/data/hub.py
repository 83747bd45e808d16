"""Image data sets of the Hugging Face hub, through the library ``datasets`` and its disk cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from PIL import Image

from polysem.data.columns import image_column, label_column, labels_and_classes
from polysem.data.dataset import ImageData
from polysem.data.decode import decode_image
from polysem.data.fingerprint import data_sha256, file_chunks
from polysem.data.splits import choose_splits
from polysem.errors import DataError, ImageError, MissingError, PolysemError

__all__ = ["HubData", "load_hub"]

_ROWS_AT_ONCE = 64


class HubData(ImageData):
    """Images in a ``datasets.Dataset``, which lies memory-mapped in that library's cache.

    Parameters
    ----------
    name, keys, labels, classes
        As in `ImageData`.
    table : datasets.Dataset
        One column, of images that are not decoded: ``{"bytes": …, "path": …}``.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        table: Any,
        labels: npt.NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, keys, labels=labels, classes=classes)
        self.table = table
        self.column = str(table.column_names[0])

    def read(self, index: int) -> Image.Image:
        """Return image number `index`; see `decode_image` for how it is converted."""
        content = self.table[index][self.column] or {}
        source = content.get("bytes") or content.get("path")
        if not source:
            raise ImageError(self.keys[index], "the table holds no image for it")
        return decode_image(source, key=self.keys[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of keys, labels, class names and the bytes of every image."""
        return data_sha256(self, self._content())

    def _content(self) -> Iterator[bytes]:
        for rows in self.table.iter(_ROWS_AT_ONCE):
            for content in rows[self.column]:
                piece, path = (content or {}).get("bytes"), (content or {}).get("path")
                yield b"%d\n" % len(piece or b"")
                yield from [piece] if piece else file_chunks([Path(path)] if path else [])


def load_hub(
    repository: str,
    *,
    name: str,
    split: str | None = None,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> HubData:
    """Load an image data set from the Hugging Face hub, or from the cache of an earlier download.

    Keys are the ``path``s of the images where they are all there, unique and not absolute (as
    places in a local cache are), otherwise ``SPLIT#ROW``.

    Parameters
    ----------
    repository : str
        ``ORG/NAME``, or a local folder in the layout of a hub repository.
    name : str
        The spec, for messages.
    split : str, optional
        Of several splits the one to read.
    config : str, optional
        Of several configurations the one to read.
    image, label : str, optional
        Columns, where type and name do not tell; ``label="none"`` leaves labels out.

    Raises
    ------
    MissingError
        If the data set is not there or the hub cannot be reached.
    DataError
        If it cannot be read, holds no images, or labels do not hold.
    SpecError
        If the split, configuration or a column is unknown, or one of several has to be named.
    """
    import datasets

    try:
        available = datasets.get_dataset_split_names(repository, config)
        chosen = choose_splits(name, available, split)
        table = datasets.load_dataset(repository, config, split="+".join(chosen))
    except PolysemError:
        raise
    except (FileNotFoundError, ConnectionError) as error:
        raise MissingError(
            f"{name}: the hub has no data set {repository!r} that can be reached from here "
            f"({_first_line(error)}); check the name and the network"
        ) from None
    except Exception as error:  # anything can be wrong in someone else's data set and its reader
        raise DataError(
            f"{name}: the library 'datasets' cannot load it: {_first_line(error)}"
        ) from None
    features = table.features.to_dict()
    images = image_column(features, image, name=name)
    labelled = label_column(features, label, name=name)
    pictures = table.select_columns([images]).cast_column(images, datasets.Image(decode=False))
    if not len(table):
        raise DataError(f"{name}: the data set has no rows")
    keys = _paths(pictures, images) or [f"{'+'.join(chosen)}#{row}" for row in range(len(table))]
    values = list(table[labelled]) if labelled else []
    names = features[labelled].get("names") if labelled else None
    labels, classes = labels_and_classes(values, names, name=name, keys=keys)
    return HubData(name, keys, table=pictures, labels=labels, classes=classes)


def _paths(pictures: Any, column: str) -> list[str] | None:
    """Return the path of every image if they can serve as keys; the images stay on disk."""
    paths: list[str] = []
    for rows in pictures.with_format("arrow").iter(1024):
        paths += pc.struct_field(rows.column(column), "path").to_pylist()
    usable = all(path and not PurePath(path).is_absolute() for path in paths)
    return paths if usable and len(set(paths)) == len(paths) else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
