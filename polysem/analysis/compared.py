"""What groups are made of: faces of units, or facets, with the directions that compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.analysis.faces import Face, chosen_sites, faces
from polysem.analysis.facet_features import facet_features
from polysem.analysis.unit_features import (
    Features,
    centroid_features,
    class_features,
    default_features,
    face_table,
)
from polysem.errors import DataError
from polysem.store.run import Run

__all__ = ["FEATURES", "Compared", "compared_faces", "compared_facets"]

#: Features of faces by the name that the command takes.
FEATURES: dict[str, Callable[[list[Face]], Features]] = {
    "centroid": centroid_features,
    "class": class_features,
}


@dataclass(frozen=True)
class Compared:
    """What is grouped.

    Attributes
    ----------
    feature : str
        What it is compared by.
    keys : DataFrame
        site, unit and tail of each face; of a facet also its number.
    directions : float32 array [row, dim]
        Of length 1.
    top_class : callable
        Name of the class that stands for some rows (bool [row]); None without labels.
    """

    feature: str
    keys: pd.DataFrame
    directions: Features
    top_class: Callable[[npt.NDArray[np.bool_]], str | None]


def compared_faces(run: Run, sites: str | None, feature: str | None) -> Compared:
    """Return the faces of units that are not constant, by one of `FEATURES`; DataError if few."""
    name = feature or default_features(run)
    if name == "class" and run.images["label"].isna().all():
        raise DataError(
            f"{run.path} has neither embeddings nor labels to compare units by; make embeddings "
            f"with: polysem embed {run.path}"
        )
    of_sites = [face for site in chosen_sites(run, sites) for face in faces(run, site)]
    directions = FEATURES[name](of_sites)
    living = np.asarray(np.isfinite(directions).all(1))
    if living.sum() < 3:
        raise DataError(
            f"{living.sum()} faces of units of {run.path} change at all; groups need three"
        )
    try:
        profiles = class_features(of_sites)[living]
    except ValueError:  # no labels, or too few classes
        profiles = None

    def top_class(mine: npt.NDArray[np.bool_]) -> str | None:
        if profiles is None:
            return None
        seen = np.flatnonzero(of_sites[0].units["class_count"].to_numpy() > 0)
        return _class_name(run, int(seen[profiles[mine].mean(0).argmax()]))

    table = face_table(of_sites).loc[living].reset_index(drop=True)
    return Compared(name, table, directions[living], top_class)


def compared_facets(run: Run, sites: str | None) -> Compared:
    """Return the facets of a run, by their exemplars; DataError if there are fewer than three."""
    table, directions = facet_features(run, sites)
    if len(table) < 3:
        raise DataError(f"{len(table)} facets of units of {run.path} are known; groups need three")
    labels = run.images.set_index("image")["label"].loc[table["best_image"]].to_numpy()

    def top_class(mine: npt.NDArray[np.bool_]) -> str | None:
        known = pd.Series(labels[mine]).dropna()
        return None if known.empty else _class_name(run, int(known.mode().iloc[0]))

    return Compared("exemplars", table.drop(columns="best_image"), directions, top_class)


def _class_name(run: Run, label: int) -> str:
    return str(label) if run.classes is None else run.classes[label]
