"""What every data source hands on: images with stable keys, labels, and a content fingerprint.

The readers in ``sources`` and the drawn images in ``shapes`` subclass `ImageData`; the probe and
the training loop know nothing else about where images come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from operator import index as as_index
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from polysem.errors import DataError

__all__ = ["ImageData"]


class ImageData(Dataset[Any], ABC):
    """Images in a fixed order, each with a key that names it for good.

    A subclass gives `read` and `fingerprint` (a ``functools.cached_property`` where it is dear).
    Everything here pickles, so that loader workers can hold a copy; a subclass must not keep open
    files or lambdas.

    Parameters
    ----------
    name : str
        The spec that this data was loaded from.
    keys : sequence of str
        One unique name per image, the same wherever and however often the data is loaded.
    labels : int array [image], optional
        Class of each image, counted from 0; None where images have no labels.
    classes : sequence of str, optional
        Name of each class; None where classes have no names.
    transform : callable, optional
        Applied to the PIL image by ``data[i]``. May be replaced at any time.

    Attributes
    ----------
    concepts : tuple of str or None
        Names of what `concept_matrix` tells of every image; None where nobody has said more of
        the images than their class.

    Raises
    ------
    DataError
        If keys repeat, or labels and classes do not fit each other or the keys.
    """

    name: str
    keys: Sequence[str]
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    transform: Callable[[Image.Image], Any] | None
    concepts: tuple[str, ...] | None = None

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        labels: npt.ArrayLike | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self.name = name
        self.keys = keys
        self.classes = None if classes is None else tuple(classes)
        self.labels = None if labels is None else _checked_labels(name, labels, keys, self.classes)
        self.transform = transform
        if len(set(keys)) < len(keys):
            twice = next(key for key, count in Counter(keys).items() if count > 1)
            raise DataError(f"{name}: the image key {twice!r} occurs more than once")

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) that changes whenever an image, a label or their order changes."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Return image number `index` as an RGB picture.

        Raises
        ------
        ImageError
            If this one image cannot be read; the error holds its key and the reason.
        """

    def concept_matrix(self) -> npt.NDArray[np.bool_]:
        """Return which concepts each image shows, [image, concept].

        Raises
        ------
        DataError
            If the data has no `concepts`.
        """
        raise DataError(f"{self.name} does not say which concepts its images show")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Any:
        number = as_index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is no image {number}")
        image = self.read(number % len(self))
        return image if self.transform is None else self.transform(image)


def _checked_labels(
    name: str, labels: npt.ArrayLike, keys: Sequence[str], classes: tuple[str, ...] | None
) -> npt.NDArray[np.int64]:
    given = np.asarray(labels)
    if given.shape != (len(keys),):
        raise DataError(f"{name}: {len(keys)} images but labels of shape {given.shape}")
    if given.size and given.dtype.kind not in "iu":
        raise DataError(f"{name}: labels are {given.dtype}; expected whole numbers from 0 on")
    checked = given.astype(np.int64)
    if checked.size and checked.min() < 0:
        where = keys[int(checked.argmin())]
        raise DataError(f"{name}: image {where!r} has the label {checked.min()}, below 0")
    if classes is not None and checked.size and checked.max() >= len(classes):
        where = keys[int(checked.argmax())]
        raise DataError(
            f"{name}: image {where!r} has the label {checked.max()}, "
            f"but there are only {len(classes)} classes (0 to {len(classes) - 1})"
        )
    return checked
