"""All methods on one model side by side: where their maps point, and whether the model agrees.

Every method explains the same pictures, the same grids and the same classes, so that rows of the
table differ in the method alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from polysem.data.dataset import ImageData
from polysem.errors import DataError, SpecError
from polysem.explain.controls import CONTROLS
from polysem.explain.faithfulness import (
    Baseline,
    area_under,
    deletion_curve,
    insertion_curve,
    mask_energy,
)
from polysem.explain.forward import forward
from polysem.explain.intervals import mean_interval
from polysem.explain.methods import Method, choose_methods, left_out
from polysem.explain.pictures import (
    Pictures,
    confidence_kind,
    logits_of,
    object_masks,
    open_model,
    read_pictures,
    require_same_classes,
)
from polysem.explain.pointing import cell_scores, choose_grids, confidence_of, tile
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar

__all__ = ["MEANINGS", "Localisation", "localise"]

#: What the columns of `Localisation.table` hold.
MEANINGS = {
    "method": "function of polysem.explain, or a control that explains nothing",
    "control": "whether it is such a control: uniform, noise, edges",
    "metric": "grid_NxN: share of positive contribution in the own cell of a grid (arXiv "
    "2104.00032); mask_energy: share inside of the outline of the object that gives the class "
    "(arXiv 1910.01279, exact outline); deletion, insertion: area under the confidence of the "
    "class as pixels go or come, highest contribution first (arXiv 1806.07421)",
    "better": "higher or lower: which end of the metric is the good one",
    "value": "mean over pictures or grids, from 0 to 1",
    "low": "lower end of the 95 % bootstrap interval of the mean, over pictures or grids",
    "high": "upper end of it",
    "chance": "what a map that is the same everywhere gets, where that is known; else NaN",
    "n": "how many pictures or grids",
}


@dataclass(frozen=True)
class Localisation:
    """Methods compared on one model.

    Attributes
    ----------
    table : DataFrame
        A row for each method and metric; columns as in `MEANINGS`.
    scores : DataFrame
        The same before averaging: method, metric, key (of the picture, or ``grid 0``), value.
    curves : DataFrame
        Mean confidence: method, curve (deletion or insertion), share of the pixels, confidence.
    gallery : Gallery
        Some pictures with the maps of all methods.
    notes : tuple of str
        What was left out, and why.
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame
    gallery: Gallery
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures and the maps of all methods, ready to be drawn.

    Attributes
    ----------
    pictures : uint8 array [image, y, x, 3]
    maps : dict of str to float array [image, y, x]
        Signed contributions, by method.
    titles : list of str
        Class of each picture.
    masks : bool array [image, y, x] or None
        Outline of the object that gives the class.
    """

    pictures: npt.NDArray[np.uint8]
    maps: dict[str, npt.NDArray[np.float32]]
    titles: list[str]
    masks: npt.NDArray[np.bool_] | None


@dataclass
class _Work:
    """What all methods are given."""

    loaded: LoadedModel
    pictures: Pictures
    logits: Tensor
    chosen: Tensor
    masks: Tensor | None
    grids: dict[int, tuple[Tensor, Tensor]]
    smooth: int
    baseline: Baseline
    steps: int
    batch_size: int
    scores: list[dict[str, Any]] = field(default_factory=list)
    curves: list[pd.DataFrame] = field(default_factory=list)


def localise(
    model: str | Path | LoadedModel,
    data: str | Path | ImageData,
    *,
    methods: str | Mapping[str, Method] = "all",
    grids: Sequence[int] = (2,),
    n_images: int = 100,
    n_grids: int = 50,
    limit: int | None = 1000,
    smooth: int = 1,
    baseline: Baseline = "mean",
    steps: int = 16,
    n_shown: int = 12,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Localisation:
    """Compare methods of explanation on one model: grid pointing, mask energy, faithfulness.

    Only pictures that the model classifies correctly are explained, for their own class. Masks
    are there for drawn images (`Shapes`). Three controls that explain nothing come along:
    ``uniform``, ``noise`` and ``edges``.

    Parameters
    ----------
    model : str, Path or LoadedModel
        Anything that `load_model` takes.
    data : str, Path or ImageData
        Anything that `load_data` takes, with the labels that the model has learnt.
    methods : str or mapping of str to callable
        Names separated by commas; ``all`` are those that the model can have. Or functions of
        (model, images, target) by name, your own among them.
    grids : sequence of int
        Cells a side of the grids; none plays no pointing game.
    n_images, n_grids : int
        Pictures explained, and grids of each size, at most.
    limit : int, optional
        Pictures read, from which both are chosen.
    smooth : int
        Odd side of the window that maps are averaged over in the pointing game.
    baseline : {"mean", "blur"}
        What takes the place of deleted pixels.
    steps : int
        Steps of the deletion and insertion curves.
    n_shown : int
        Pictures in the gallery.
    batch_size : int
        Images explained at a time.
    seed : int
        Of pictures, grids and intervals.
    device : str
        Where a model that is not loaded yet goes.
    progress : bool
        Draw a progress bar if the terminal can.

    Returns
    -------
    Localisation

    Raises
    ------
    SpecError
        If a method is not known or the model cannot have it, or an option is out of range.
    DataError
        If there are no labels, others than the model's, too few classes for a grid, or no picture
        that is classified correctly.
    NonFiniteError
        If a map holds NaN or infinity.
    """
    for name, value in {
        "n_images": n_images, "n_grids": n_grids, "n_shown": n_shown, "batch_size": batch_size,
        "steps": steps, "limit": limit,
    }.items():  # fmt: skip
        if value is not None and value < 1:
            raise SpecError(f"{name} must be at least 1, not {value}")
    loaded = open_model(model, device)
    network = loaded.model
    chosen = choose_methods(methods, network) if isinstance(methods, str) else dict(methods)
    notes = left_out(network) if methods == "all" else []
    pictures = read_pictures(
        data, loaded.transform, limit=limit, seed=seed, device=next(network.parameters()).device
    )
    if pictures.skipped:
        notes.append(f"{len(pictures.skipped)} images left out: {pictures.skipped[0]}, …")
    logits = logits_of(network, loaded.transform, pictures.pixels)
    require_same_classes(loaded, pictures.source, logits.shape[1])
    assert pictures.labels is not None
    right = (logits.argmax(1) == pictures.labels).nonzero()[:, 0]
    if not len(right):
        raise DataError(
            f"the model classifies none of {len(pictures):,} images of {pictures.source.name} "
            "correctly, so there is no evidence to look for"
        )
    masks = object_masks(pictures, loaded.transform)
    if masks is None:
        notes.append(f"no mask energy: nothing tells where the objects of {data} are")
    work = _Work(
        loaded, pictures, logits, right[:n_images], masks, {}, smooth, baseline, steps, batch_size
    )
    for n in grids:
        work.grids[n], note = _grid(work, n, n_grids, seed)
        notes += note
    every = {**chosen, **CONTROLS}
    maps: dict[str, Tensor] = {}
    with progress_bar(unit="methods", show=progress) as move:
        for done, (name, method) in enumerate(every.items()):
            move(name, done, len(every))
            maps[name] = _compare(work, name, method)
    scores = pd.DataFrame(work.scores)
    return Localisation(
        table=_table(scores, chosen, work, seed),
        scores=scores,
        curves=pd.concat(work.curves, ignore_index=True),
        gallery=_gallery(work, {name: maps[name] for name in chosen}, n_shown),
        notes=tuple(notes),
    )


def _grid(work: _Work, n: int, n_grids: int, seed: int) -> tuple[tuple[Tensor, Tensor], list[str]]:
    """Return tiled pictures [grid, channel, y, x] in uint8 and the class of each cell."""
    pictures, transform = work.pictures, work.loaded.transform
    assert pictures.labels is not None
    numbers = torch.from_numpy(
        choose_grids(
            work.logits, pictures.labels, n, confidence=confidence_kind(work.loaded),
            limit=n_grids, seed=seed,
        )  # fmt: skip
    ).to(pictures.pixels.device)
    tiles, notes = pictures.pixels[numbers], []
    height, width = transform.size
    grids = tile(tiles[:1])
    try:
        with torch.no_grad():
            forward(work.loaded.model, transform.normalize(grids), {})
        grids = tile(tiles)
    except SpecError:
        grids = tile(tiles, size=transform.size)
        notes.append(
            f"grid_{n}x{n}: this model takes no images of {n * height} × {n * width} px, so the "
            f"pictures are shrunk into cells of {height // n} × {width // n} px"
        )
    return (grids, pictures.labels[numbers]), notes


def _compare(work: _Work, name: str, method: Method) -> Tensor:
    """Score one method by all metrics, and return its maps of the chosen pictures."""
    network, transform = work.loaded.model, work.loaded.transform
    for n, (grids, classes) in work.grids.items():
        size = max(1, work.batch_size // n)
        for start in range(0, len(grids), size):
            shares = cell_scores(
                _asking(method, network),
                transform.normalize(grids[start : start + size]),
                classes[start : start + size],
                smooth=work.smooth,
            ).mean(1)
            for i, value in enumerate(shares.tolist(), start=start):
                work.scores.append(_score(name, f"grid_{n}x{n}", f"grid {i}", value))
    pixels, labels = work.pictures.pixels[work.chosen], _labels(work)[work.chosen]
    maps = torch.cat(
        [
            _asking(method, network)(transform.normalize(some), classes)
            for some, classes in zip(
                pixels.split(work.batch_size), labels.split(work.batch_size), strict=True
            )
        ]
    )
    for metric, values in _faithfulness(work, name, pixels, maps, labels):
        for key, value in zip(_keys(work), values.tolist(), strict=True):
            work.scores.append(_score(name, metric, key, value))
    return maps


def _faithfulness(
    work: _Work, name: str, pixels: Tensor, maps: Tensor, labels: Tensor
) -> Iterator[tuple[str, Tensor]]:
    if work.masks is not None:
        yield "mask_energy", mask_energy(maps, work.masks[work.chosen])
    kind, model, transform = confidence_kind(work.loaded), work.loaded.model, work.loaded.transform

    def predict(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            whole = (pixels * 255).round().to(torch.uint8)
            return confidence_of(model(transform.normalize(whole)), kind)

    for metric, curve_of in (("deletion", deletion_curve), ("insertion", insertion_curve)):
        curve = curve_of(
            predict, pixels.float() / 255, maps, labels, baseline=work.baseline, steps=work.steps
        ).cpu()
        work.curves.append(
            pd.DataFrame(
                {
                    "method": name,
                    "curve": metric,
                    "share": np.linspace(0, 1, work.steps + 1),
                    "confidence": curve.double().mean(0).numpy(),
                }
            )
        )
        yield metric, area_under(curve)


def _asking(method: Method, network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, classes: method(network, images, classes)


def _labels(work: _Work) -> Tensor:
    assert work.pictures.labels is not None
    return work.pictures.labels


def _keys(work: _Work) -> list[str]:
    pictures = work.pictures
    return [pictures.source.keys[int(pictures.indices[i])] for i in work.chosen.tolist()]


def _score(method: str, metric: str, key: str, value: float) -> dict[str, Any]:
    return {"method": method, "metric": metric, "key": key, "value": value}


def _table(
    scores: pd.DataFrame, methods: Mapping[str, Method], work: _Work, seed: int
) -> pd.DataFrame:
    rows = []
    for (method, metric), group in scores.groupby(["method", "metric"], sort=False):
        value, low, high = mean_interval(group["value"], seed=seed)
        rows.append(
            {
                "method": method,
                "control": method not in methods,
                "metric": metric,
                "better": "lower" if metric == "deletion" else "higher",
                "value": value,
                "low": low,
                "high": high,
                "chance": _chance(str(metric), work),
                "n": len(group),
            }
        )
    table = pd.DataFrame(rows)
    table.attrs["columns"] = MEANINGS
    return table


def _chance(metric: str, work: _Work) -> float:
    if metric.startswith("grid_"):
        return 1 / int(metric.rpartition("x")[2]) ** 2
    if metric == "mask_energy":
        assert work.masks is not None
        return float(work.masks[work.chosen].double().mean())
    return float("nan")


def _gallery(work: _Work, maps: Mapping[str, Tensor], n_shown: int) -> Gallery:
    """Choose pictures of as many classes as there are, and what is drawn of them."""
    labels = _labels(work)[work.chosen].cpu().numpy()
    turn = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    shown = np.lexsort((labels, turn))[:n_shown]  # one of each class, then the next of each
    source = work.pictures.source
    names = work.loaded.classes or source.classes
    pick = work.chosen[torch.from_numpy(shown).to(work.chosen.device)]
    return Gallery(
        pictures=work.pictures.pixels[pick].permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        maps={name: values.cpu().float().numpy()[shown] for name, values in maps.items()},
        titles=[names[i] if names else f"class {i}" for i in labels[shown]],
        masks=None if work.masks is None else work.masks[pick].cpu().numpy(),
    )
