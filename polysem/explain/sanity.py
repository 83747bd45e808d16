"""Sanity checks: a map that explains a model changes when the model forgets what it has learnt.

Layers are drawn anew from the logits down, adding one after another (cascading) or one at a time
(independent), and the maps of the same images and classes are compared with those of the trained
model. A model trained on permuted labels can stand beside it (data randomisation). The similarity
of a faithful method falls towards 0; that of an edge detector stays at 1.

Adebayo et al., Sanity Checks for Saliency Maps, arXiv 1810.03292.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor, nn

from polysem.data.dataset import ImageData
from polysem.errors import SpecError, did_you_mean
from polysem.explain.controls import edges, noise
from polysem.explain.intervals import mean_interval
from polysem.explain.methods import Method, choose_methods
from polysem.explain.pictures import logits_of, open_model, read_pictures
from polysem.explain.randomise import By, Randomised
from polysem.explain.similarity import SIMILARITIES
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar

__all__ = ["MEANINGS", "ORDERS", "Order", "sanity_checks"]

Order = Literal["cascading", "independent"]

ORDERS: tuple[Order, ...] = get_args(Order)

#: What the columns of the table of `sanity_checks` hold.
MEANINGS = {
    "method": "function of polysem.explain, or a control: edges (blind to the model), noise",
    "control": "whether it is such a control",
    "order": "cascading: this layer and all nearer to the logits are drawn anew; independent: this "
    "layer alone; data: the model trained on permuted labels (arXiv 1810.03292)",
    "depth": "how many layers from the logits; 0 is the trained model itself, NaN for data",
    "layer": "the layer, as in the names of the weights",
    "similarity": "spearman: rank correlation of signed maps; spearman_abs: of absolute values; "
    "ssim: structural similarity; hog: correlation of histograms of oriented gradients",
    "value": "mean over images of the similarity of the map to that of the trained model; 1 is "
    "equal, 0 unrelated",
    "low": "lower end of the 95 % bootstrap interval of the mean, over images",
    "high": "upper end of it",
    "n": "images whose similarity is defined: both maps vary",
}


def sanity_checks(
    model: str | Path | LoadedModel,
    data: str | Path | ImageData,
    *,
    methods: str | Mapping[str, Method] = "all",
    permuted: str | Path | LoadedModel | None = None,
    orders: Sequence[Order] = ORDERS,
    by: By = "block",
    n_images: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Compare the maps of a trained model with those of randomised ones.

    Everything is explained in evaluation mode, for the classes that the trained model predicts.
    Every parameter belongs to a layer, also positions, class tokens and position biases, and is
    drawn from its own initial distribution. The model itself is not changed.

    Parameters
    ----------
    model : str, Path or LoadedModel
        Anything that `load_model` takes; a LoadedModel needs its `build`.
    data : str, Path or ImageData
        Anything that `load_data` takes; labels are not needed.
    methods : str or mapping of str to callable
        Names separated by commas; ``all`` are those that the model can have. Or functions by name.
    permuted : str, Path or LoadedModel, optional
        The same architecture trained on permuted labels.
    orders : sequence of {"cascading", "independent"}
    by : {"block", "module"}
        What a layer is, see `layers_of`.
    n_images : int
        Images explained.
    batch_size : int
    seed : int
        Of the images, the fresh weights and the intervals.
    device : str
        Where models that are not loaded yet go.
    progress : bool
        Draw a progress bar if the terminal can.

    Returns
    -------
    DataFrame
        A row for each method, order, layer and similarity; columns as in `MEANINGS`.

    Raises
    ------
    SpecError
        If a method or an order is not known, the model cannot be built anew, or `permuted` takes
        other images, has other classes or cannot have the methods.
    DataError
        If no image can be read.
    NonFiniteError
        If a map holds NaN or infinity.
    """
    for order in orders:
        if order not in ORDERS:
            near = did_you_mean(order, ORDERS) or f"; there are {', '.join(ORDERS)}"
            raise SpecError(f"layers are drawn in no order {order!r}{near}")
    for name, value in {"n_images": n_images, "batch_size": batch_size}.items():
        if value < 1:
            raise SpecError(f"{name} must be at least 1, not {value}")
    if by not in get_args(By):
        raise SpecError(f"a layer is a block or module, not {by!r}")
    if seed < 0:
        raise SpecError(f"the seed must not be negative, got {seed}")
    loaded = open_model(model, device)
    other = None if permuted is None else open_model(permuted, device)
    chosen = choose_methods(methods, loaded.model) if isinstance(methods, str) else dict(methods)
    if loaded.build is None:
        raise SpecError(
            f"nothing tells how to build {loaded.name} anew; give LoadedModel the function `build`"
        )
    pictures = read_pictures(
        data, loaded.transform, limit=n_images, seed=seed,
        device=next(loaded.model.parameters()).device,
    )  # fmt: skip
    images = loaded.transform.normalize(pictures.pixels)
    logits = logits_of(loaded.model, loaded.transform, pictures.pixels, batch_size=batch_size)
    if other is not None:
        _require_like(other, loaded, pictures.pixels, logits.shape[1])
    classes = logits.argmax(1)
    drawn = Randomised(loaded.model, loaded.build, images, by=by, seed=seed)
    compared = _Compared(
        {**chosen, "edges": edges, "noise": noise}, images, classes, batch_size, loaded.model
    )
    rows: list[dict[str, Any]] = []
    steps = list(_steps(tuple(drawn.layers)[::-1], orders))
    total = len(steps) + (other is not None)
    with progress_bar(unit="models", show=progress) as move:
        for done, (order, depth, layer, layers) in enumerate(steps):
            move(f"{order} {layer}", done, total)
            found = compared.with_model(drawn.with_layers(layers))
            rows += _rows(found, order, depth, layer, chosen, seed)
        if other is not None:
            move("permuted labels", len(steps), total)
            found = compared.with_model(other.model)
            rows += _rows(found, "data", float("nan"), "labels", chosen, seed)
    table = pd.DataFrame(rows)
    table.attrs["columns"] = MEANINGS
    return table


class _Compared:
    """The maps of the trained model, for others to be held against."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        images: Tensor,
        classes: Tensor,
        batch_size: int,
        model: nn.Module,
    ) -> None:
        self.methods = dict(methods)
        self._batches = list(zip(images.split(batch_size), classes.split(batch_size), strict=True))
        self._trained = {name: self._maps(name, model) for name in self.methods}

    def with_model(self, model: nn.Module) -> Iterator[tuple[str, str, list[float]]]:
        """Yield method, similarity, and its values for each image."""
        for name in self.methods:
            pairs = list(zip(self._trained[name], self._maps(name, model), strict=True))
            for similarity, measure in SIMILARITIES.items():
                yield name, similarity, [measure(one, two) for one, two in pairs]

    def _maps(self, name: str, model: nn.Module) -> npt.NDArray[np.float64]:
        method = self.methods[name]
        parts = [method(model, *batch).double().cpu().numpy() for batch in self._batches]
        return np.concatenate(parts)


def _steps(
    layers: Sequence[str], orders: Sequence[Order]
) -> Iterator[tuple[Order, int, str, tuple[str, ...]]]:
    """Yield order, depth, layer, and the layers that are drawn, the logits' first."""
    for order in orders:
        yield order, 0, "none", ()
        for depth, layer in enumerate(layers, start=1):
            yield order, depth, layer, tuple(layers[:depth]) if order == "cascading" else (layer,)


def _rows(
    found: Iterator[tuple[str, str, list[float]]],
    order: str,
    depth: float,
    layer: str,
    methods: Mapping[str, Method],
    seed: int,
) -> Iterator[dict[str, Any]]:
    for method, similarity, values in found:
        value, low, high = mean_interval(values, seed=seed)
        yield {
            "method": method,
            "control": method not in methods,
            "order": order,
            "depth": depth,
            "layer": layer,
            "similarity": similarity,
            "value": value,
            "low": low,
            "high": high,
            "n": int(np.sum(~np.isnan(values))),
        }


def _require_like(other: LoadedModel, loaded: LoadedModel, pixels: Tensor, n_classes: int) -> None:
    if other.transform != loaded.transform:
        raise SpecError(
            f"{other.spec} takes its images in another way than {loaded.spec}: a model for data "
            "randomisation has the same architecture and transform"
        )
    given = logits_of(other.model, other.transform, pixels[:1]).shape[1]
    if given != n_classes:
        raise SpecError(f"{other.spec} has {given} classes, {loaded.spec} {n_classes}")
