"""One unit taken out of a run, with all that a picture of it needs to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from polysem.errors import SpecError
from polysem.store.run import Run
from polysem.store.schema import ranking_pool

__all__ = [
    "Caption", "Exemplar", "Unit", "aspect", "captions", "class_name", "described", "open_unit",
    "unit_name",
]  # fmt: skip


@dataclass(frozen=True)
class Exemplar:
    """One image that a unit answers to.

    Attributes
    ----------
    image : int
        Index in the data.
    value : float
        What it was ranked by, in the network's own units.
    activation : float array [y, x] or None
        The unit over the patch grid of the image; None where the site has no positions.
    """

    image: int
    value: float
    activation: np.ndarray | None


@dataclass(frozen=True)
class Caption:
    """What is said of an image: its class, and what the model takes it for.

    Attributes
    ----------
    key : str
        Key of the image in the data.
    label : str or None
        Name of its class; None for unlabelled data.
    prediction : str or None
        Name of the class that the model gives it, if there is one.
    correct : bool or None
        Whether that is right; None where the two cannot be compared.
    """

    key: str
    label: str | None
    prediction: str | None
    correct: bool | None


@dataclass(frozen=True)
class Unit:
    """One unit of a run.

    Attributes
    ----------
    site, name : str
        Where it is, and what it is called there: ``unit 17`` or ``head 2``.
    statistics : Dataset
        The variables of ``store.schema.UNITS`` without the axis ``unit``.
    """

    site: str
    name: str
    statistics: xr.Dataset

    @property
    def dead(self) -> bool:
        """Whether it gave the same value on every image."""
        return bool(self.statistics["dead"])

    @property
    def pools(self) -> list[str]:
        """How tokens became one number per image."""
        return [str(pool) for pool in self.statistics["pool"].to_numpy()]

    @property
    def tails(self) -> list[str]:
        """The tails whose exemplars are kept, upper first."""
        return [str(tail) for tail in self.statistics["tail"].to_numpy()]

    @property
    def base(self) -> float:
        """What it does on average over patches and images, or over images at a pooled site."""
        return self.get("mean", "mean" if "mean" in self.pools else self.pools[0])

    def pool(self, tail: str) -> str:
        """Return the pool that a tail's exemplars were ranked by."""
        return ranking_pool(self.pools, tail)

    def get(self, name: str, pool: str) -> float:
        """Return one statistic of one pool."""
        return float(self.statistics[name].sel(pool=pool))

    def quantiles(self, pool: str, *wanted: float) -> list[float]:
        """Return quantiles over the sampled images; NaN for one that the run does not hold."""
        given = self.statistics["quantile"].sel(pool=pool)
        known = given["q"].to_numpy()
        hits = (np.flatnonzero(np.isclose(known, q)) for q in wanted)
        return [float(given[hit[0]]) if len(hit) else float("nan") for hit in hits]

    def exemplars(self, tail: str, most: int) -> list[Exemplar]:
        """Return the exemplars of a tail, most extreme first, at most so many."""
        top = self.statistics.sel(tail=tail)
        count = min(int(top["n_exemplars"]), most)
        return [
            Exemplar(
                image=int(top["top_image"][rank]),
                value=float(top["top_value"][rank]),
                activation=top["top_map"][rank].to_numpy() if "top_map" in top else None,
            )
            for rank in range(count)
        ]

    def class_means(self, pool: str) -> np.ndarray | None:
        """Return the mean activation of each class, NaN without images; None if unlabelled."""
        if "class_sum" not in self.statistics:
            return None
        count = self.statistics["class_count"].to_numpy().astype(float)
        with np.errstate(invalid="ignore"):
            means: np.ndarray = self.statistics["class_sum"].sel(pool=pool).to_numpy() / count
        return means


def open_unit(run: Run, site: str, unit: int) -> Unit:
    """Read one unit of a run.

    Raises
    ------
    SpecError
        If the site was not recorded, or has no such unit.
    """
    units = run.units(site)
    count = units.sizes["unit"]
    if not 0 <= unit < count:
        raise SpecError(
            f"{site} has no {unit_name(run, site, unit)}: its units are numbered 0 to {count - 1}"
        )
    one = units.drop_vars("pooled", errors="ignore").isel(unit=unit)
    return Unit(site, unit_name(run, site, unit), one.load())


def unit_name(run: Run, site: str, unit: int) -> str:
    """Return what a unit is called: ``head 2`` where a whole head is the unit, else ``unit 2``."""
    kind = run.manifest["sites"][site]["unit"]
    return f"{'head' if kind == 'head' else 'unit'} {unit}"


def described(run: Run) -> str:
    """Return which model was probed on what, and whether to the end."""
    n_images, status = run.manifest["n_images"], run.manifest["status"]
    text = f"{run.manifest['model']['name']}, {n_images:,} images of {run.manifest['data']['name']}"
    return text if status == "complete" else f"{text} ({status})"


def aspect(run: Run) -> float:
    """Return the height of the model's input over its width."""
    height, width = run.manifest["model"]["transform"]["size"]
    return float(height / width)


def captions(run: Run, images: list[int]) -> dict[int, Caption]:
    """Return what is said of each of some images, given by their index in the data."""
    rows = run.images.set_index("image").reindex(images)
    labels, outputs = run.classes, run.manifest["model"]["classes"]
    found = {}
    for image, row in zip(images, rows.itertuples(), strict=True):
        correct = None if _missing(row.correct) else bool(row.correct)
        # a model that does not name its outputs shares the names of data it can be held against;
        # otherwise the number of an output tells nobody anything
        names = labels if outputs is None and correct is not None else outputs
        found[image] = Caption(
            f"image {image}" if _missing(row.key) else str(row.key),
            _class(row.label, labels),
            None if names is None and correct is None else _class(row.prediction, names),
            correct,
        )
    return found


def class_name(index: int, names: list[str] | None) -> str:
    """Return the name of a class, or its number where it has none."""
    name = names[index] if names is not None and index < len(names) else ""
    return name.strip() or f"class {index}"


def _class(value: Any, names: list[str] | None) -> str | None:
    return None if _missing(value) else class_name(int(value), names)


def _missing(value: Any) -> bool:
    return bool(pd.isna(value))
