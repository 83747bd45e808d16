"""All methods on one model side by side: where their maps point, and whether the model agrees.

Every method explains the same pictures, the same grids and the same classes, so that rows of the
table differ in the method alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor, nn

from polysem.data.dataset import ImageData
from polysem.errors import SpecError
from polysem.explain.colour import colour
from polysem.explain.comparison import Comparison, curves_of, grid_scores, maps_of, prepare
from polysem.explain.controls import CONTROLS
from polysem.explain.faithfulness import Baseline, area_under, check_baseline, mask_energy
from polysem.explain.intervals import mean_interval
from polysem.explain.methods import METHODS, Method, applicable_methods, choose_methods
from polysem.explain.pictures import open_model, read_pictures
from polysem.explain.pointing import check_smooth
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar

__all__ = ["MEANINGS", "Gallery", "Localisation", "localise"]

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
    colours : float array [image, y, x, 4] or None
        Explanations in colour, RGBA, where the network is of B-cos layers.
    titles : list of str
        Class of each picture.
    masks : bool array [image, y, x] or None
        Outline of the object that gives the class.
    """

    pictures: npt.NDArray[np.uint8]
    maps: dict[str, npt.NDArray[np.float32]]
    colours: npt.NDArray[np.float32] | None
    titles: list[str]
    masks: npt.NDArray[np.bool_] | None


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
    for n in grids:
        if n < 2:
            raise SpecError(f"a grid needs at least 2 × 2 cells, not {n} × {n}")
    if seed < 0:
        raise SpecError(f"the seed must not be negative, got {seed}")
    check_smooth(smooth)
    check_baseline(baseline)
    loaded = open_model(model, device)
    network = loaded.model
    chosen = choose_methods(methods, network) if isinstance(methods, str) else dict(methods)
    pictures = read_pictures(
        data, loaded.transform, limit=limit, seed=seed, device=next(network.parameters()).device
    )
    comparison = prepare(
        loaded, pictures, grids=grids, n_images=n_images, n_grids=n_grids, batch_size=batch_size,
        seed=seed,
    )  # fmt: skip
    every = {**chosen, **CONTROLS}
    maps: dict[str, Tensor] = {}
    scores: list[pd.DataFrame] = []
    curves: list[pd.DataFrame] = []
    with progress_bar(unit="methods", show=progress) as move:
        for done, (name, method) in enumerate(every.items()):
            move(name, done, len(every))
            for n in comparison.grids:
                shares = grid_scores(comparison, method, n, smooth=smooth).mean(1)
                keys = [f"grid {i}" for i in range(len(shares))]
                scores.append(_scores(name, f"grid_{n}x{n}", keys, shares))
            maps[name] = maps_of(comparison, method)
            if comparison.masks is not None:
                energy = mask_energy(maps[name], comparison.masks)
                scores.append(_scores(name, "mask_energy", comparison.keys, energy))
            followed = curves_of(comparison, maps[name], baseline=baseline, steps=steps)
            for metric, curve in followed.items():
                scores.append(_scores(name, metric, comparison.keys, area_under(curve)))
                curves.append(_curve(name, metric, curve))
    joined = pd.concat(scores, ignore_index=True)
    return Localisation(
        table=_table(joined, chosen, comparison, seed),
        scores=joined,
        curves=pd.concat(curves, ignore_index=True),
        gallery=_gallery(comparison, {name: maps[name] for name in chosen}, n_shown),
        notes=(*comparison.notes, *(_left_out(network) if methods == "all" else ())),
    )


def _left_out(model: nn.Module) -> list[str]:
    missing = [name for name in METHODS if name not in applicable_methods(model)]
    return [f"left out, as this model cannot have them: {', '.join(missing)}"] if missing else []


def _scores(method: str, metric: str, keys: list[str], values: Tensor) -> pd.DataFrame:
    return pd.DataFrame(
        {"method": method, "metric": metric, "key": keys, "value": values.double().cpu().numpy()}
    )


def _curve(method: str, metric: str, curve: Tensor) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": method,
            "curve": metric,
            "share": np.linspace(0, 1, curve.shape[1]),
            "confidence": curve.double().mean(0).cpu().numpy(),
        }
    )


def _table(
    scores: pd.DataFrame, methods: Mapping[str, Method], comparison: Comparison, seed: int
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (method, metric), group in scores.groupby(["method", "metric"], sort=False):
        value, low, high = mean_interval(group["value"].to_numpy(), seed=seed)
        rows.append(
            {
                "method": method,
                "control": method not in methods,
                "metric": metric,
                "better": "lower" if metric == "deletion" else "higher",
                "value": value,
                "low": low,
                "high": high,
                "chance": _chance(str(metric), comparison),
                "n": len(group),
            }
        )
    table = pd.DataFrame(rows)
    table.attrs["columns"] = MEANINGS
    return table


def _chance(metric: str, comparison: Comparison) -> float:
    if metric.startswith("grid_"):
        return 1 / int(metric.rpartition("x")[2]) ** 2
    if metric == "mask_energy" and comparison.masks is not None:
        return float(comparison.masks.double().mean())
    return float("nan")


def _gallery(comparison: Comparison, maps: Mapping[str, Tensor], n_shown: int) -> Gallery:
    """Choose pictures of as many classes as there are, and what is drawn of them."""
    labels = comparison.classes.cpu().numpy()
    turn = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    shown = np.lexsort((labels, turn))[:n_shown]  # one of each class, then the next of each
    names, masks = comparison.loaded.classes, comparison.masks
    coloured = None
    if "bcos" in maps:
        images = comparison.loaded.transform.normalize(comparison.pixels[shown])
        coloured = colour(comparison.network, images, comparison.classes[shown]).cpu()
    return Gallery(
        pictures=comparison.pixels.permute(0, 2, 3, 1).cpu().numpy()[shown],
        maps={name: values.float().cpu().numpy()[shown] for name, values in maps.items()},
        colours=None if coloured is None else coloured.permute(0, 2, 3, 1).numpy(),
        titles=[names[i] if names else f"class {i}" for i in labels[shown]],
        masks=None if masks is None else masks.cpu().numpy()[shown],
    )
