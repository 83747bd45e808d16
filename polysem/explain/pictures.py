"""Model and pictures together, for the comparisons of methods: read, transformed and classified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from polysem.data import drawing
from polysem.data.dataset import ImageData
from polysem.data.shapes import Shapes
from polysem.data.sources import load_data
from polysem.data.subset import Subset
from polysem.device import choose_device
from polysem.errors import DataError, ImageError
from polysem.explain.forward import explaining
from polysem.explain.pointing import Confidence
from polysem.models.bcos import BcosConv2d, BcosLinear
from polysem.models.load import LoadedModel, load_model
from polysem.models.transform import Transform

__all__ = [
    "Pictures",
    "confidence_kind",
    "logits_of",
    "object_masks",
    "open_model",
    "read_pictures",
    "require_same_classes",
]


@dataclass(frozen=True)
class Pictures:
    """Some images of a data set, as a model sees them.

    Attributes
    ----------
    source : ImageData
        Where they come from.
    indices : int64 array [image]
        Their numbers there.
    pixels : uint8 Tensor [image, channel, y, x]
    labels : int64 Tensor [image] or None
    skipped : list of ImageError
        Those that could not be read.
    """

    source: ImageData
    indices: npt.NDArray[np.int64]
    pixels: Tensor
    labels: Tensor | None
    skipped: list[ImageError]

    def __len__(self) -> int:
        return len(self.pixels)


def open_model(
    model: str | Path | LoadedModel,
    device: str,
    *,
    weights: Path | None = None,
    arch: str | None = None,
) -> LoadedModel:
    """Return the model of a spec on a device; one that is loaded stays where it is."""
    if isinstance(model, LoadedModel):
        return model
    return load_model(str(model), weights=weights, arch=arch, device=choose_device(device))


def read_pictures(
    data: str | Path | ImageData,
    transform: Transform,
    *,
    limit: int | None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Pictures:
    """Read pictures and bring them to a model's size.

    Parameters
    ----------
    data : str, Path or ImageData
        Anything that `load_data` takes.
    transform : Transform
        The model's.
    limit : int or None
        At most so many, drawn at random where data is a spec, else the first.
    seed : int
        Of that choice.
    device : torch.device or str
        Where pixels and labels go.

    Raises
    ------
    DataError
        If there is no picture that can be read.
    """
    source = data if isinstance(data, ImageData) else load_data(str(data), limit=limit, seed=seed)
    kept, pixels, skipped = [], [], []
    for index in range(len(source) if limit is None else min(limit, len(source))):
        try:
            pixels.append(transform(source.read(index)))
            kept.append(index)
        except ImageError as error:
            skipped.append(error)
    if not pixels:
        why = f": {skipped[0]}" if skipped else ""
        raise DataError(f"{source.name} holds no image that can be read{why}")
    indices = np.array(kept, dtype=np.int64)
    labels = None if source.labels is None else torch.from_numpy(source.labels[indices]).to(device)
    return Pictures(source, indices, torch.stack(pixels).to(device), labels, skipped)


def logits_of(
    model: nn.Module, transform: Transform, pixels: Tensor, *, batch_size: int = 64
) -> Tensor:
    """Return logits [image, class] of uint8 pixels [image, channel, y, x], in evaluation mode."""
    with explaining(model), torch.inference_mode():
        return torch.cat([model(transform.normalize(part)) for part in pixels.split(batch_size)])


def confidence_kind(loaded: LoadedModel) -> Confidence:
    """Return how a model turns logits into confidences: as the loss of its training does.

    Where no recipe says, a sigmoid for networks of B-cos layers, which are trained with binary
    cross-entropy, else a softmax.
    """
    loss = (loaded.info.get("recipe") or {}).get("loss")
    if loss in ("bce", "cross_entropy"):
        return "sigmoid" if loss == "bce" else "softmax"
    layers = (BcosLinear, BcosConv2d)
    return "sigmoid" if any(isinstance(m, layers) for m in loaded.model.modules()) else "softmax"


def require_same_classes(loaded: LoadedModel, pictures: Pictures, n_logits: int) -> Tensor:
    """Return the labels of pictures if they are the model's classes.

    Raises
    ------
    DataError
        If there are no labels, or others.
    """
    source, labels = pictures.source, pictures.labels
    if labels is None:
        raise DataError(
            f"{source.name} has no labels, and without them nobody knows which class is where"
        )
    if loaded.classes is not None and source.classes is not None:
        if loaded.classes == source.classes:
            return labels
        raise DataError(
            f"the model knows {len(loaded.classes)} classes ({', '.join(loaded.classes[:3])}, …), "
            f"{source.name} has {len(source.classes)} others ({', '.join(source.classes[:3])}, …): "
            "give data with the labels that the model has learnt"
        )
    # without names, all labels count: the highest class may not be in a sample
    whole = source.whole if isinstance(source, Subset) else source
    known = labels.numpy() if whole.labels is None else whole.labels
    n_classes = len(source.classes) if source.classes else int(known.max()) + 1
    if n_classes != n_logits:
        raise DataError(
            f"the model has {n_logits} outputs, {source.name} {n_classes} classes: give data with "
            "the labels that the model has learnt"
        )
    return labels


def object_masks(pictures: Pictures, transform: Transform) -> Tensor | None:
    """Return where each picture shows the object that gives its class, bool [image, y, x].

    Exact, as what is drawn is known: what can be seen of the largest object of `Shapes`, scaled and
    cropped like the picture. None for other data.
    """
    source: ImageData = pictures.source
    numbers = pictures.indices
    while isinstance(source, Subset):
        numbers = source.indices[numbers]
        source = source.whole
    if not isinstance(source, Shapes):
        return None
    masks = []
    for number in numbers:
        owner = drawing.owners(source.scene(int(number)), source.size) == 1
        seen = transform(Image.fromarray(owner.astype(np.uint8) * 255).convert("RGB"))
        masks.append(seen[0] > 127)
    return torch.stack(masks).to(pictures.pixels.device)
