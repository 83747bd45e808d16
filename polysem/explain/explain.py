"""`explain`: images through a model, and what of each image made a class or a unit fire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from polysem.data.dataset import ImageData
from polysem.data.folder import FileData
from polysem.errors import MissingError, SpecError
from polysem.explain.colour import colour_image
from polysem.explain.completeness import check
from polysem.explain.forward import explaining, require_finite_map, target_values
from polysem.explain.linear import bcos, linear_map
from polysem.explain.methods import choose_methods
from polysem.explain.pictures import Pictures, open_model, read_pictures
from polysem.explain.target import Target, TargetLike, parse_target
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar

__all__ = ["COLUMNS", "Explanations", "explain", "image_files"]

#: What the columns of an explanation's table hold.
COLUMNS = {
    "image": "index in the data",
    "key": "name of the image",
    "label": "its class in the data, missing if it has none",
    "prediction": "class that the model gives it",
    "target": "what is explained",
    "value": "the number that is explained: a logit, or how strongly a unit fired",
    "method": "method of explanation",
    "sum": "sum of the map over the image",
    "positive": "sum of the map's positive values",
    "added": "of bcos maps: what the network adds beside them, biases and positions",
    "error": "of bcos maps: sum + added − value, 0 if nothing is missing",
}


@dataclass(frozen=True)
class Explanations:
    """Maps of some images by several methods.

    Attributes
    ----------
    pixels : uint8 array [image, y, x, 3]
        The images as the model saw them.
    indices : int64 array [image]
        Their numbers in the data.
    keys, targets, predictions : list of str
        Of each image: its name, what is explained, what the model takes it for.
    labels : list of str or None
        Its class in the data.
    values : float array [image]
        The number that is explained.
    maps : dict of str to float32 array [image, y, x]
        Signed contributions by method.
    colours : float32 array [image, y, x, RGBA] or None
        Of B-cos networks.
    added : float array [image] or None
        Of B-cos networks: what they add beside W(x), by `completeness.check`.
    skipped : list of str
        Why images were left out.
    model : str
        Name of the architecture.
    """

    pixels: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    keys: list[str]
    targets: list[str]
    predictions: list[str]
    labels: list[str] | None
    values: npt.NDArray[np.float64]
    maps: dict[str, npt.NDArray[np.float32]]
    colours: npt.NDArray[np.float32] | None
    added: npt.NDArray[np.float64] | None
    model: str
    skipped: list[str] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """Return one row for each image and method; `COLUMNS` says what they hold."""
        rows = []
        for method, maps in self.maps.items():
            sums = maps.sum((1, 2), dtype=np.float64)
            positive = np.where(maps > 0, maps, 0).sum((1, 2), dtype=np.float64)
            added = np.full(len(sums), np.nan)
            if self.added is not None and method == bcos.__name__:
                added = self.added
            for i, key in enumerate(self.keys):
                rows.append(
                    {
                        "image": int(self.indices[i]),
                        "key": key,
                        "label": None if self.labels is None else self.labels[i],
                        "prediction": self.predictions[i],
                        "target": self.targets[i],
                        "value": self.values[i],
                        "method": method,
                        "sum": sums[i],
                        "positive": positive[i],
                        "added": added[i],
                        "error": sums[i] + added[i] - self.values[i],
                    }
                )
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        table.attrs["columns"] = dict(COLUMNS)
        return table.sort_values("image", kind="stable", ignore_index=True)


def explain(
    model: str | Path | LoadedModel,
    data: str | Path | ImageData,
    *,
    target: str | Target | None = None,
    methods: str = "all",
    limit: int | None = 12,
    smooth: int | None = None,
    percentile: float = 99.5,
    batch_size: int = 16,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Explanations:
    """Explain what a model makes of images.

    Parameters
    ----------
    model : str, Path or LoadedModel
        Anything that `load_model` takes.
    data : str, Path or ImageData
        Anything that `load_data` takes; `image_files` makes it of single files.
    target : str or Target, optional
        A class by name or number, or ``site:unit``, as `parse_target` reads them; by default
        each image's predicted class.
    methods : str, default "all"
        Names of `methods.METHODS`, separated by commas; all that the model can have.
    limit : int or None, default 12
        At most so many images, drawn at random with `seed`.
    smooth, percentile
        Of colour explanations, as in `colour.colour_image`.
    batch_size : int, default 16
        Images at a time.
    device : str, default "auto"
    seed : int, default 0
    progress : bool, default True

    Returns
    -------
    Explanations

    Raises
    ------
    SpecError
        If there is no such target or method, or the model cannot have the method.
    NonFiniteError
        If a map or a number is not finite.
    DataError
        If no image can be read.
    """
    if batch_size < 1:
        raise SpecError(f"batch_size must be at least 1, not {batch_size}")
    loaded = open_model(model, device)
    network = loaded.model
    if isinstance(target, str):
        target = parse_target(target, network, classes=loaded.classes)
    chosen = choose_methods(methods, network, target)
    place = next(network.parameters()).device
    pictures = read_pictures(data, loaded.transform, limit=limit, seed=seed, device=place)
    done = 0
    parts: list[dict[str, Any]] = []
    with progress_bar(unit="maps", show=progress) as move:

        def step() -> None:
            nonlocal done
            done += 1
            move("explain", done, total)

        batches = pictures.pixels.split(batch_size)
        total = len(batches) * len(chosen)
        for pixels in batches:
            parts.append(
                _explain_batch(
                    loaded, pixels, target, chosen, step, smooth=smooth, percentile=percentile
                )
            )
    return _joined(loaded, pictures, target, parts)


def image_files(files: Sequence[Path]) -> ImageData:
    """Return single image files as data.

    Raises
    ------
    MissingError
        If one is not there.
    """
    for file in files:
        if not file.expanduser().is_file():
            raise MissingError(f"there is no image file {file}")
    keys = [str(file) for file in files]
    there = [str(file.expanduser().absolute()) for file in files]
    return FileData(", ".join(keys), keys, root=Path("/"), files=there)


def _explain_batch(
    loaded: LoadedModel,
    pixels: Tensor,
    target: Target | None,
    chosen: dict[str, Any],
    step: Callable[[], None],
    *,
    smooth: int | None,
    percentile: float,
) -> dict[str, Any]:
    network = loaded.model
    dtype = next(network.parameters()).dtype
    images = loaded.transform.normalize(pixels).to(dtype)
    with explaining(network), torch.no_grad():
        logits = network(images)
    predicted = logits.argmax(1)
    wanted: TargetLike = predicted if target is None else target
    found: dict[str, Any] = {"predicted": predicted.cpu(), "maps": {}}
    if bcos.__name__ in chosen:
        found |= _bcos_batch(network, images, wanted, smooth=smooth, percentile=percentile)
    else:
        with explaining(network), torch.no_grad():
            found["values"] = target_values(network, images, [wanted])[0].double().cpu()
    for name, method in chosen.items():
        if name not in found["maps"]:
            maps = method(network, images, wanted)
            found["maps"][name] = maps.float().cpu()
        step()
    return found


def _bcos_batch(
    network: nn.Module,
    images: Tensor,
    target: TargetLike,
    *,
    smooth: int | None,
    percentile: float,
) -> dict[str, Any]:
    """Return map, colours, number and additive terms of one batch."""
    found = linear_map(network, images, [target])
    maps = require_finite_map(found.contributions[0].sum(1), bcos.__name__)
    colours = None
    if images.shape[1] == 6:
        rgba = colour_image(images, found.weights[0], smooth=smooth, percentile=percentile)
        colours = rgba.permute(0, 2, 3, 1).float().cpu()
    terms = check(network, images, [target]).terms.values()
    added = sum((term[0].double().cpu() for term in terms), torch.zeros(len(images)).double())
    return {
        "maps": {bcos.__name__: maps.float().cpu()},
        "colours": colours,
        "added": added,
        "values": found.values[0].double().cpu(),
    }


def _joined(
    loaded: LoadedModel, pictures: Pictures, target: Target | None, parts: list[dict[str, Any]]
) -> Explanations:
    def all_of(name: str) -> Any:
        if parts[0].get(name) is None:
            return None
        return torch.cat([part[name] for part in parts]).numpy()

    def class_name(index: int) -> str:
        return loaded.classes[index] if loaded.classes else f"class {index}"

    predicted = [class_name(int(i)) for i in all_of("predicted")]
    if target is None:
        targets = predicted
    else:
        named = class_name(target.unit) if target.site is None else str(target)
        targets = [named] * len(predicted)
    labels = None
    if pictures.labels is not None:
        names = pictures.source.classes
        numbers = [int(i) for i in pictures.labels.cpu()]
        labels = [names[i] if names else f"class {i}" for i in numbers]
    return Explanations(
        pixels=pictures.pixels.permute(0, 2, 3, 1).cpu().numpy(),
        indices=pictures.indices,
        keys=[pictures.source.keys[int(i)] for i in pictures.indices],
        targets=targets,
        predictions=predicted,
        labels=labels,
        values=all_of("values"),
        maps={
            name: torch.cat([part["maps"][name] for part in parts]).numpy()
            for name in parts[0]["maps"]
        },
        colours=all_of("colours"),
        added=all_of("added"),
        model=loaded.name,
        skipped=[str(error) for error in pictures.skipped],
    )
