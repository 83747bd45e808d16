"""What a facet is compared by: one direction for each, from the exemplars that it holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.analysis.faces import chosen_sites, faces
from polysem.analysis.facet_table import exemplar_embeddings, image_embeddings
from polysem.analysis.monosemanticity import unit_length
from polysem.analysis.unit_features import Features
from polysem.errors import RunError
from polysem.store.run import Run

__all__ = ["facet_features"]

_KEYS = ["site", "unit", "tail", "facet"]


def facet_features(run: Run, sites: str | None = None) -> tuple[pd.DataFrame, Features]:
    """Return the facets of a run, and the direction of each one's centroid from the common mean.

    The centroid is the mean embedding of the facet's exemplars. What all have in common is taken
    out, as for units: the mean of all images, or where crops were embedded the mean of all
    exemplars' crops, for crops differ from whole images in a way of their own.

    Parameters
    ----------
    run : Run
        With the tables that ``polysem facets`` makes.
    sites : str, optional
        Globs of sites, comma-separated; by default all whose facets are known.

    Returns
    -------
    facets : DataFrame
        site, unit, tail, facet and best_image (index in the data), in the order of the network.
    directions : float32 array [facet, dim]
        Of length 1.

    Raises
    ------
    RunError
        If facets of a site are missing, or were found among other embeddings than the run has.
    """
    of_facets, seen = _tables(run)
    known = set(seen.index.get_level_values("site"))
    chosen = [site for site in run.sites if site in known]
    if sites is not None:
        chosen = chosen_sites(run, sites)
        lacking = [site for site in chosen if site not in known]
        if lacking:
            raise RunError(
                f"{run.path} has no facets at {', '.join(lacking)}; make them with: "
                f"polysem facets {run.path} --sites '{sites}'"
            )
    images = image_embeddings(run)
    keys, means, by_crops = [], [], []
    crops, n_crops = np.zeros(()), 0
    for face in [face for site in chosen for face in faces(run, site)]:
        exemplars, what = exemplar_embeddings(face, images)
        if what != seen.get((face.site, face.tail)):
            raise RunError(
                f"facets at {face.site} of {run.path} were found before its embeddings of {what} "
                f"were made; make them again with: polysem facets {run.path}"
            )
        mine = of_facets[(of_facets["site"] == face.site) & (of_facets["tail"] == face.tail)]
        there = np.isfinite(exemplars).all(-1)
        exemplars[~there] = 0
        keys.append(mine)
        means.append(_means(exemplars, mine))
        by_crops.append(np.full(len(mine), what == "crops"))
        if what == "crops":
            crops = crops + exemplars.sum((0, 1), dtype=np.float64)
            n_crops += int(there.sum())
    if len({mean.shape[1] for mean in means}) > 1:
        raise RunError(
            f"crops and images of {run.path} were embedded by encoders of other dimensions, so "
            "their facets cannot be compared: choose sites of one kind with --sites"
        )
    found, crop = np.concatenate(means), np.concatenate(by_crops)
    if not crop.all():
        found[~crop] -= images.mean(0)
    if n_crops:
        found[crop] -= crops / n_crops
    table = pd.concat(keys, ignore_index=True)[[*_KEYS, "best_image"]]
    return table, unit_length(found).astype(np.float32)


def _tables(run: Run) -> tuple[pd.DataFrame, pd.Series]:
    """Return the facets, and whether crops or images were seen at each site and tail."""
    missing = [
        name for name in ("facets", "unit_facets")
        if not run.has_table(name)
    ]  # fmt: skip
    if missing:
        raise RunError(
            f"{run.path} has no facets to group; make them with: polysem facets {run.path}"
        )
    return run.table("facets"), run.table("unit_facets").groupby(["site", "tail"])["seen"].first()


def _means(exemplars: npt.NDArray[np.float32], facets: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the mean embedding of each facet's exemplars [facet, dim]."""
    ranks = facets["ranks"].to_numpy()
    row = np.repeat(np.arange(len(facets)), [len(each) for each in ranks])
    rank = np.concatenate([*ranks, []]).astype(np.int64)
    inside = np.zeros((len(facets), exemplars.shape[1]), dtype=np.float32)
    inside[row, rank] = 1
    found = np.empty((len(facets), exemplars.shape[2]))
    number = facets["facet"].to_numpy()
    for each in np.unique(number):  # a unit has one facet of each number, so nothing is repeated
        some = number == each
        units = facets["unit"].to_numpy()[some]
        found[some] = np.einsum("fr,frd->fd", inside[some], exemplars[units])
    return np.asarray(found / inside.sum(1, keepdims=True))
