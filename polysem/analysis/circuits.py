"""The circuits of every unit of a run: groups of exemplars that the same upstream units made fire.

Facets tell what a unit's exemplars look like, circuits how they came about. Both are found alike.
But few upstream units contribute much to an exemplar, so that one of them can tear it away from
the others: contributions count by their square roots, and divisions are held against shuffled
contributions. Distances of embeddings tell whether circuits also look apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.analysis.faces import Face, faces
from polysem.analysis.facet_table import (
    FACET_MEANINGS,
    UNIT_MEANINGS,
    divide,
    exemplar_embeddings,
    image_embeddings,
)
from polysem.analysis.facets import shuffled
from polysem.analysis.peer_scores import facet_distances
from polysem.errors import RunError
from polysem.sites import select_sites
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["CIRCUIT_MEANINGS", "UNIT_CIRCUIT_MEANINGS", "circuits"]

#: Columns of ``tables/unit_circuits.parquet``, one row a face of a unit; "facets" are circuits.
UNIT_CIRCUIT_MEANINGS = {
    **UNIT_MEANINGS,
    "seen": "the site whose units' contributions were compared",
    "facets": "circuits: groups that the exemplars fall into by the upstream units that made them "
    "fire; 1 if they are one blob, 0 if there are none",
    "excess": "by how many standard deviations the tightest division is tighter than those of "
    "contributions shuffled among the exemplars, each upstream unit's by themselves; above 4 there "
    "are circuits",
    "within": "mean distance between embeddings of exemplars of one circuit, 0 to 2 (PURE, Dreyer "
    "et al. 2404.06453); missing without embeddings",
    "across": "mean distance between embeddings of exemplars of different circuits, 0 to 2; above "
    "the one within, circuits also look apart; missing where there is one",
}

#: Columns of ``tables/circuits.parquet``, one row a circuit.
CIRCUIT_MEANINGS = {**FACET_MEANINGS, "facet": "the circuit; 0 for the one with most exemplars"}


def circuits(
    run: Run, *, sites: str | None = None, most: int = 5, seed: int = 0, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the exemplars of every unit by what made them fire, and keep the tables in the run.

    What is compared are the shares that an earlier site's units have in the activation, which
    ``polysem explain --run RUN --upstream`` keeps. As in PURE (Dreyer et al. 2024, arXiv
    2404.06453), but by the distance of signed square roots (Hellinger's) instead of the shares
    themselves, and with the number of circuits found out instead of given. Exemplars to which no
    upstream unit contributed are in no circuit.

    Parameters
    ----------
    run : Run
    sites : str, optional
        Globs of sites, comma-separated; by default all that were traced.
    most : int
        Circuits looked for at most.
    seed : int
        Of blobs and resamples.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    units : DataFrame
        As in `UNIT_CIRCUIT_MEANINGS`; also in ``tables/unit_circuits.parquet``.
    circuits : DataFrame
        As in `CIRCUIT_MEANINGS`; also in ``tables/circuits.parquet``.

    Raises
    ------
    PolysemError
        Nothing was traced, a site that is not there, fewer than six exemplars a unit, a damaged
        run.
    """
    todo = [face for site in _traced(run, sites) for face in faces(run, site)]
    parts = divide(todo, _roots, "circuits", null=shuffled, most=most, seed=seed, progress=progress)
    images = image_embeddings(run) if (run.path / "embeddings.zarr").is_dir() else None
    of_units = []
    for face, (found, units, _) in zip(todo, parts, strict=True):
        within, across = _distances(face, found.group, images)
        of_units.append(units.assign(within=within, across=across))
    units = pd.concat(of_units, ignore_index=True)
    rows = pd.concat([rows for _, _, rows in parts], ignore_index=True)
    add_table(run, "unit_circuits", units, meanings=UNIT_CIRCUIT_MEANINGS)
    add_table(run, "circuits", rows, meanings=CIRCUIT_MEANINGS)
    return units, rows


def _traced(run: Run, globs: str | None) -> list[str]:
    """Return the sites that are named, or all that were traced."""
    store = run.path / "upstream.zarr"
    known = [site for site in run.sites if (store / site).is_dir()]
    if not known:
        raise RunError(
            f"{run.path} does not hold what made its units fire upstream; trace it with polysem "
            f"explain --run {run.path} --model {run.manifest['model']['spec']} --upstream"
        )
    chosen = known if globs is None else select_sites(run.sites, globs)
    for site in chosen:
        ranks = int(run.upstream(site).sizes["rank"])
        if min(ranks, int(run.manifest["n_images"])) < 6:
            raise RunError(
                f"{run.path} has at most {min(ranks, int(run.manifest['n_images']))} traced "
                f"exemplars a unit at {site}, and circuits need six: probe at least six images "
                "with --top-k 16 or more, and trace all of their exemplars"
            )
    return chosen


def _roots(face: Face) -> tuple[npt.NDArray[np.float32], str]:
    """Return roots of upstream shares [unit, rank, source_unit], NaN where none; and which site."""
    stored = face.run.upstream(face.site)
    shares = stored["share"].sel(tail=face.tail).to_numpy().astype(np.float32)
    n_ranks = shares.shape[1]
    if shares.shape[0] != face.n_units or n_ranks > face.of_tail.sizes["rank"]:
        raise RunError(
            f"{face.run.path / 'upstream.zarr' / face.site} belongs to another run; trace it again"
        )
    shares[face.constant] = np.nan
    roots = np.sqrt(np.abs(shares)) * np.sign(shares)
    roots[~(np.abs(shares).sum(2) > 0)] = np.nan
    return roots, str(stored.attrs["source"])


def _distances(
    face: Face, group: npt.NDArray[np.int64], images: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Return the mean distances within and across circuits [2, unit], NaN without embeddings."""
    found = np.full((2, face.n_units), np.nan)
    if images is None:
        return found
    embeddings, _ = exemplar_embeddings(face, images)
    for unit, its in enumerate(group):
        there = np.flatnonzero(its >= 0)
        found[:, unit] = facet_distances(embeddings[unit, there].astype(np.float64), its[there])
    return found
