"""Some images of a data set as a data set of their own, for limits."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.errors import SpecError

__all__ = ["Subset", "sample"]


class Subset(ImageData):
    """Images of another data set, under their keys there.

    Parameters
    ----------
    whole : ImageData
        Where the images come from.
    indices : int array [image]
        Numbers of the images there, each once.
    """

    def __init__(self, whole: ImageData, indices: npt.NDArray[np.int64]) -> None:
        super().__init__(
            whole.name,
            [whole.keys[i] for i in indices],
            labels=None if whole.labels is None else whole.labels[indices],
            classes=whole.classes,
            transform=whole.transform,
        )
        self.whole = whole
        self.indices = indices
        self.concepts = whole.concepts

    def read(self, index: int) -> Image.Image:
        """Return image number `index` of the subset."""
        return self.whole.read(int(self.indices[index]))

    def concept_matrix(self) -> npt.NDArray[np.bool_]:
        """Return which concepts each image of the subset shows, [image, concept]."""
        return self.whole.concept_matrix()[self.indices]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the whole's fingerprint and the numbers chosen."""
        chosen = self.indices.astype("<i8").tobytes()
        return hashlib.sha256(self.whole.fingerprint.encode() + chosen).hexdigest()


def sample(data: ImageData, limit: int, *, seed: int = 0) -> ImageData:
    """Return `limit` images chosen at random, in their order; all if there are not more.

    Not the first ones: stored data are often ordered by class. A smaller limit with the same seed
    gives a subset of a larger one.

    Raises
    ------
    SpecError
        If the seed is negative.
    """
    if seed < 0:
        raise SpecError(f"a seed is at least 0, not {seed}")
    if limit >= len(data):
        return data
    chosen = np.random.default_rng(seed).permutation(len(data))[:limit]
    return Subset(data, np.sort(chosen).astype(np.int64))
