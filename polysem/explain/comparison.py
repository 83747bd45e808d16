"""What every method is held against in `localise`: the same pictures, grids, masks and curves.

`prepare` chooses them once for a model; `grid_scores`, `maps_of` and `curves_of` then ask one
method after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polysem.errors import DataError, SpecError
from polysem.explain.faithfulness import Baseline, deletion_curve, insertion_curve
from polysem.explain.forward import explaining, forward
from polysem.explain.methods import Method
from polysem.explain.pictures import (
    Pictures,
    confidence_kind,
    logits_of,
    object_masks,
    require_same_classes,
)
from polysem.explain.pointing import cell_scores, choose_grids, confidence_of, tile
from polysem.models.load import LoadedModel

__all__ = ["Comparison", "Grids", "curves_of", "grid_scores", "maps_of", "prepare"]


@dataclass(frozen=True)
class Grids:
    """Tiled pictures.

    Attributes
    ----------
    pixels : uint8 Tensor [grid, channel, y, x]
    classes : int64 Tensor [grid, cell]
        Class of the picture in each cell, row by row.
    """

    pixels: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Comparison:
    """What all methods are asked about one model.

    Attributes
    ----------
    loaded : LoadedModel
    pixels : uint8 Tensor [image, channel, y, x]
        Pictures that are classified correctly.
    classes : int64 Tensor [image]
    keys : list of str
    masks : bool Tensor [image, y, x] or None
        Where the object is that gives the class; None where nobody knows.
    grids : dict of int to Grids
        By cells a side.
    batch_size : int
        Images explained at a time.
    notes : tuple of str
        What could not be done as asked.
    """

    loaded: LoadedModel
    pixels: Tensor
    classes: Tensor
    keys: list[str]
    masks: Tensor | None
    grids: dict[int, Grids]
    batch_size: int
    notes: tuple[str, ...]

    @property
    def network(self) -> nn.Module:
        """The model itself."""
        return self.loaded.model


def prepare(
    loaded: LoadedModel,
    pictures: Pictures,
    *,
    grids: Sequence[int],
    n_images: int,
    n_grids: int,
    batch_size: int,
    seed: int,
) -> Comparison:
    """Choose the pictures to be explained and tile the grids.

    Raises
    ------
    DataError
        If there are no labels or others than the model's, no picture is classified correctly, or
        there are too few classes for a grid.
    """
    logits = logits_of(loaded.model, loaded.transform, pictures.pixels, batch_size=batch_size)
    labels = require_same_classes(loaded, pictures, logits.shape[1])
    chosen = (logits.argmax(1) == labels).nonzero()[:n_images, 0]
    if not len(chosen):
        raise DataError(
            f"the model classifies none of {len(pictures):,} images of {pictures.source.name} "
            "correctly, so there is no evidence to look for"
        )
    notes = []
    if pictures.skipped:
        notes.append(f"{len(pictures.skipped):,} images left out, such as: {pictures.skipped[0]}")
    masks = object_masks(pictures, loaded.transform)
    if masks is None:
        notes.append(
            f"no mask energy: nothing tells where the objects of {pictures.source.name} are"
        )
    confidence = confidence_kind(loaded)
    tiled: dict[int, Grids] = {}
    for n in grids:
        numbers = torch.from_numpy(
            choose_grids(logits, labels, n, confidence=confidence, limit=n_grids, seed=seed)
        ).to(labels.device)
        pixels, shrunk = _tiled(loaded, pictures.pixels[numbers], n)
        tiled[n] = Grids(pixels, labels[numbers])
        notes += [f"grid_{n}x{n}: {shrunk}"] if shrunk else []
    return Comparison(
        loaded=loaded,
        pixels=pictures.pixels[chosen],
        classes=labels[chosen],
        keys=[pictures.source.keys[int(pictures.indices[i])] for i in chosen.tolist()],
        masks=None if masks is None else masks[chosen],
        grids=tiled,
        batch_size=batch_size,
        notes=tuple(notes),
    )


def _tiled(loaded: LoadedModel, pictures: Tensor, n: int) -> tuple[Tensor, str | None]:
    """Tile pictures [grid, cell, channel, y, x] at full size, or shrunk, with the reason."""
    try:
        with explaining(loaded.model), torch.inference_mode():
            forward(loaded.model, loaded.transform.normalize(tile(pictures[:1])), {})
    except SpecError:
        height, width = loaded.transform.size
        return tile(pictures, size=loaded.transform.size), (
            f"this model takes no images of {n * height} × {n * width} px, so pictures are shrunk "
            f"into cells of {height // n} × {width // n} px"
        )
    return tile(pictures), None


def grid_scores(comparison: Comparison, method: Method, n: int, *, smooth: int = 1) -> Tensor:
    """Return what share of the evidence for a cell's class is in the cell, [grid, cell]."""
    grids, transform = comparison.grids[n], comparison.loaded.transform
    at_once = max(1, comparison.batch_size // n**2)  # as many pixels as in a batch of pictures
    return torch.cat(
        [
            cell_scores(
                _asking(method, comparison.network),
                transform.normalize(pixels),
                classes,
                smooth=smooth,
            )
            for pixels, classes in zip(
                grids.pixels.split(at_once), grids.classes.split(at_once), strict=True
            )
        ]
    )


def maps_of(comparison: Comparison, method: Method) -> Tensor:
    """Return the maps [image, y, x] of the pictures, each for its own class."""
    explain, transform = _asking(method, comparison.network), comparison.loaded.transform
    batches = zip(
        comparison.pixels.split(comparison.batch_size),
        comparison.classes.split(comparison.batch_size),
        strict=True,
    )
    return torch.cat([explain(transform.normalize(some), classes) for some, classes in batches])


def curves_of(
    comparison: Comparison, maps: Tensor, *, baseline: Baseline, steps: int
) -> dict[str, Tensor]:
    """Return the deletion and the insertion curve of maps, each [image, step]."""
    transform, confidence = comparison.loaded.transform, confidence_kind(comparison.loaded)

    def predict(pixels: Tensor) -> Tensor:
        whole = (pixels * 255).round().to(torch.uint8)
        return confidence_of(logits_of(comparison.network, transform, whole), confidence)

    pixels = comparison.pixels.float() / 255
    return {
        name: curve(predict, pixels, maps, comparison.classes, baseline=baseline, steps=steps)
        for name, curve in (("deletion", deletion_curve), ("insertion", insertion_curve))
    }


def _asking(method: Method, network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, classes: method(network, images, classes)
