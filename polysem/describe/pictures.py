"""What a vision-language model sees of a run: its images, and crops of where its units fired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polysem.describe.view import View

__all__ = ["Crops", "Pictures"]


@dataclass(frozen=True)
class Crops:
    """Embeddings of the crops where the exemplars of a site fired.

    Attributes
    ----------
    exemplars : mapping of str to Tensor
        By tail: [unit, rank, dim], NaN where there is no exemplar.
    background : Tensor
        Crops at random places of random images [place, dim].
    """

    exemplars: Mapping[str, Tensor]
    background: Tensor

    def view(self, tail: str, texts: Tensor) -> tuple[View, Tensor]:
        """Return background and crops as images of a view, and the exemplars as its rows.

        Rows are [unit, rank], -1 where there is no exemplar.
        """
        crops = self.exemplars[tail]
        there = crops.isfinite().all(-1)
        rows = torch.full(there.shape, -1)
        rows[there] = len(self.background) + torch.arange(int(there.sum()))
        images = torch.cat([self.background, crops[there]])
        return View(images, texts, n_background=len(self.background)), rows


@dataclass(frozen=True)
class Pictures:
    """What was embedded of a run, by one model.

    Attributes
    ----------
    images : Tensor
        Every image of the run, in their order [image, dim].
    crops : mapping of str to Crops
        By site, where crops were embedded.
    attrs : mapping of str to str
        Name of the ``encoder`` and its ``fingerprint``.
    """

    images: Tensor
    crops: Mapping[str, Crops] = field(default_factory=dict)
    attrs: Mapping[str, str] = field(default_factory=dict)
