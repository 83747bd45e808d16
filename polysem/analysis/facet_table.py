"""The facets of every unit of a run, as tables: from exemplars and what an encoder sees of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.analysis.faces import Face, chosen_sites, faces
from polysem.analysis.facets import Facets, find_facets
from polysem.analysis.monosemanticity import unit_length
from polysem.errors import RunError
from polysem.progress import progress_bar
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = [
    "FACET_MEANINGS", "UNIT_MEANINGS", "exemplar_embeddings", "facets", "image_embeddings",
]  # fmt: skip

_KEYS = {
    "site": "where in the network",
    "unit": "index of the unit at its site",
    "tail": "upper or lower: a unit that fires both ways has two faces",
}

#: Columns of ``tables/unit_facets.parquet``, one row a face of a unit.
UNIT_MEANINGS = {
    **_KEYS,
    "seen": "what was embedded of an exemplar: a crop of where it fired, or the whole image",
    "exemplars": "exemplars divided",
    "facets": "groups that the exemplars fall into; 1 if they are one blob, 0 if there are none",
    "effective_facets": "exp of the entropy of the facets' shares, 1 to the number of facets",
    "silhouette": "how well the facets are apart on their principal axes, -1 to 1 (Rousseeuw "
    "1987); missing where there is one",
    "excess": "by how many standard deviations the tightest division is tighter than that of "
    "normal blobs of the same spread; above 4 there are facets",
    "stability": "mean adjusted Rand index with the division of resampled exemplars, 0 chance to "
    "1; missing where there is one facet",
}

#: Columns of ``tables/facets.parquet``, one row a facet.
FACET_MEANINGS = {
    **_KEYS,
    "facet": "0 for the one with most exemplars",
    "exemplars": "exemplars in it",
    "share": "its share of the exemplars' activation above the unit's mean over images, 0 to 1",
    "best_image": "index in the data of its strongest exemplar",
    "ranks": "ranks of its exemplars among the unit's, 0 the strongest",
}


def facets(
    run: Run, *, sites: str | None = None, most: int = 5, seed: int = 0, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the exemplars of every unit into facets and keep the tables in the run.

    Crops of where a unit fired are compared where the run has embeddings of them (``polysem embed
    --crops``), else whole images.

    Parameters
    ----------
    run : Run
    sites : str, optional
        Globs of sites, comma-separated; by default all.
    most : int
        Facets looked for at most.
    seed : int
        Of blobs and resamples.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    units : DataFrame
        As in `UNIT_MEANINGS`; also in ``tables/unit_facets.parquet``.
    facets : DataFrame
        As in `FACET_MEANINGS`; also in ``tables/facets.parquet``.

    Raises
    ------
    PolysemError
        No embeddings, a site that is not there, fewer than six exemplars a unit, a damaged run.
    """
    images = image_embeddings(run)
    ranks = min(int(run.manifest["options"]["top_k"]), int(run.manifest["n_images"]))
    if ranks < 6:
        raise RunError(
            f"{run.path} has at most {ranks} exemplars a unit, and facets need six: probe at "
            "least six images with --top-k 16 or more"
        )
    todo = [face for site in chosen_sites(run, sites) for face in faces(run, site)]
    n_all, done = sum(face.n_units for face in todo), 0
    of_units, of_facets = [], []
    with progress_bar(unit="units", show=progress) as move:
        for face in todo:
            exemplars, seen = exemplar_embeddings(face, images)
            move("facets", done, n_all)
            found = find_facets(exemplars, most=most, seed=seed)
            done += face.n_units
            share = _shares(face, found, most)
            of_units.append(_unit_rows(face, found, share, seen))
            of_facets.append(_facet_rows(face, found, share))
    units = pd.concat(of_units, ignore_index=True)
    parts = pd.concat(of_facets, ignore_index=True)
    add_table(run, "unit_facets", units, meanings=UNIT_MEANINGS)
    add_table(run, "facets", parts, meanings=FACET_MEANINGS)
    return units, parts


def image_embeddings(run: Run) -> npt.NDArray[np.float64]:
    """Return embeddings of all images of a run [image, dim], of length 1; RunError if none."""
    found = run.embeddings
    if len(found) != len(run.images):
        raise RunError(
            f"{run.path} holds {len(found):,} embeddings for {len(run.images):,} images; make "
            f"them again with: polysem embed {run.path} --overwrite"
        )
    return unit_length(found.to_numpy())


def exemplar_embeddings(
    face: Face, images: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], str]:
    """Return embeddings of the exemplars [unit, rank, dim], NaN where none, and what they show."""
    top = face.of_tail["top_image"].to_numpy()
    there = np.isfinite(top) & ~face.constant[:, None]
    if (face.run.path / "crop_embeddings.zarr" / face.site).is_dir():
        crops = face.run.crop_embeddings(face.site).sel(tail=face.tail).to_numpy()
        return np.where(there[..., None], crops, np.nan).astype(np.float32), "crops"
    rows = face.rows_of(np.where(there, top, face.run.images["image"].iloc[0]))
    found = images.astype(np.float32)[rows]
    found[~there] = np.nan
    return found, "images"


def _shares(face: Face, found: Facets, most: int) -> npt.NDArray[np.float64]:
    """Return each facet's share of activation [unit, facet]; of exemplars where none is above."""
    value = face.sign * face.of_tail["top_value"].to_numpy().astype(np.float64)
    above = (value - face.sign * face.moment("mean")[:, None]).clip(min=0)
    above = np.where(found.group >= 0, above, 0)
    above = np.where(above.sum(1, keepdims=True) > 0, above, found.group >= 0)
    mass = np.stack([np.where(found.group == f, above, 0).sum(1) for f in range(most)], axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(mass / mass.sum(1, keepdims=True))


def _unit_rows(
    face: Face, found: Facets, share: npt.NDArray[np.float64], seen: str
) -> pd.DataFrame:
    logs = np.log(np.where(share > 0, share, 1))
    return pd.DataFrame(
        {
            "site": face.site,
            "unit": np.arange(face.n_units),
            "tail": face.tail,
            "seen": seen,
            "exemplars": (found.group >= 0).sum(1),
            "facets": found.count,
            "effective_facets": np.exp(-(share * logs).sum(1)),
            "silhouette": found.silhouette,
            "excess": found.excess,
            "stability": found.stability,
        }
    )


def _facet_rows(face: Face, found: Facets, share: npt.NDArray[np.float64]) -> pd.DataFrame:
    unit, facet = np.nonzero(np.arange(share.shape[1])[None] < found.count[:, None])
    inside = found.group[unit] == facet[:, None]
    images = face.of_tail["top_image"].to_numpy()[unit, inside.argmax(1)]
    return pd.DataFrame(
        {
            "site": face.site,
            "unit": unit,
            "tail": face.tail,
            "facet": facet,
            "exemplars": inside.sum(1),
            "share": share[unit, facet],
            "best_image": images.astype(np.int64),
            "ranks": [np.flatnonzero(row) for row in inside],
        }
    )
