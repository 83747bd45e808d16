"""What a vision-language model sees: images and concepts in one space, a few concepts at a time.

All similarities between images and a large vocabulary do not fit in memory (50,000 images and
20,000 concepts take 4 GB), so nobody here ever holds them: `similarity` asks for columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polysem.errors import DataError, NonFiniteError

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """Images and concepts as one CLIP embeds them.

    Parameters
    ----------
    images : Tensor
        [image, dim], any length; kept at length 1.
    texts : Tensor
        [concept, dim], likewise.
    n_background : int, optional
        How many of the images, from the first, stand for any image at all: what a concept gets
        by chance is learnt from these. All of them, if not given.

    Raises
    ------
    DataError
        If there is no concept or no image, or the two have different widths.
    NonFiniteError
        If an embedding is NaN, infinite or zero.
    """

    images: Tensor
    texts: Tensor
    n_background: int | None = None
    _normalisers: dict[float, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("texts", self.texts)):
            if value.ndim != 2 or not len(value):
                raise DataError(f"{name} to compare are [number, dim], not {tuple(value.shape)}")
            length = torch.linalg.vector_norm(value, dim=1, keepdim=True)
            if not bool((length.isfinite() & (length > 0)).all()):
                raise NonFiniteError(f"an embedding among the {name} is NaN, infinite or zero")
            object.__setattr__(self, name, value / length)
        if self.images.shape[1] != self.texts.shape[1]:
            raise DataError(
                f"images have embeddings of {self.images.shape[1]} numbers and concepts of "
                f"{self.texts.shape[1]}: they are from different models"
            )

    @property
    def n_concepts(self) -> int:
        """The number of concepts."""
        return len(self.texts)

    @property
    def n_chance(self) -> int:
        """The number of images, from the first, that stand for any image."""
        return len(self.images) if self.n_background is None else self.n_background

    def chunks(self, size: int) -> Iterator[slice]:
        """Yield slices of at most `size` concepts that cover all of them in order."""
        for start in range(0, self.n_concepts, size):
            yield slice(start, min(start + size, self.n_concepts))

    def similarity(self, concepts: slice) -> Tensor:
        """Return the cosine between every image and some concepts [image, concept]."""
        return self.images @ self.texts[concepts].T

    def probability(self, concepts: slice, *, scale: float) -> Tensor:
        """Return each image's softmax over **all** concepts, of which some are asked for.

        Parameters
        ----------
        concepts : slice
        scale : float
            What cosines are multiplied by.

        Returns
        -------
        Tensor
            [image, concept]; over all concepts each row sums to 1.
        """
        return (self.similarity(concepts) * scale - self._normaliser(scale)).exp_()

    def _normaliser(self, scale: float) -> Tensor:
        """Return ``log Σ_c exp(scale · cos)`` of each image [image, 1], over all concepts."""
        if scale not in self._normalisers:
            total = torch.full((len(self.images), 1), -torch.inf).to(self.images)
            for concepts in self.chunks(1024):
                part = (self.similarity(concepts) * scale).logsumexp(1, keepdim=True)
                total = torch.logaddexp(total, part)
            self._normalisers[scale] = total
        return self._normalisers[scale]
