"""Superposition: how many more things a layer may hold than it has units.

Two views of each layer. How many directions its activations use (the participation ratio), and
how far the units' incoming weights overlap, beside what random directions would. Whether the
directions of a learnt dictionary answer to fewer things than the units is in `dictionary`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from polysem.analysis.faces import chosen_sites, faces
from polysem.analysis.scaling import Floats
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["MEANINGS", "participation_ratio", "superposition"]

#: What the columns of ``tables/superposition.parquet`` hold.
MEANINGS = {
    "site": "where in the network",
    "units": "units that are not constant",
    "images": "images whose activations are stored; the participation ratio cannot exceed it",
    "participation_ratio": "(Σ λ)² / Σ λ² of the eigenvalues of the units' covariance over images, "
    "from 1 to units: how many directions carry the activation",
    "participation_share": "participation ratio over units, 0 to 1; low: few directions, many "
    "units",
    "weight_cosine": "mean |cos| between two units' incoming weights, 0 to 1; NaN where units have "
    "no weights of their own",
    "weight_cosine_low": "lower end of its 95 % interval over units",
    "weight_cosine_high": "upper end",
    "weight_cosine_chance": "the same for random directions, sqrt(2 / (π d_in))",
}


def participation_ratio(activations: Floats) -> float:
    """Return how many directions carry the activation [image, unit].

    ``(Σ λ)² / Σ λ²`` of the eigenvalues of the covariance: 1 if all units move together, the
    number of units if they move alike and apart. At most one less than the number of images. NaN
    if nothing moves.

    >>> round(participation_ratio(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 9)
    2.0
    """
    centred = activations.astype(np.float64)
    centred = centred - centred.mean(0)
    n_images, n_units = centred.shape
    gram = centred.T @ centred if n_units <= n_images else centred @ centred.T
    square = float((gram**2).sum())
    return float(np.trace(gram) ** 2 / square) if square > 0 else float("nan")


def superposition(run: Run, *, sites: str | None = None) -> pd.DataFrame:
    """Measure the superposition of each site and keep the table in the run.

    Parameters
    ----------
    run : Run
    sites : str, optional
        Globs of sites, comma-separated; by default all.

    Returns
    -------
    DataFrame
        One row a site, columns as in `MEANINGS`; also ``tables/superposition.parquet``.
    """
    rows = []
    for site in chosen_sites(run, sites):
        face = faces(run, site)[0]
        living = ~face.constant
        overlap = np.full(3, np.nan)
        chance = np.nan
        if "weight_cosine" in face.units:
            found = face.units["weight_cosine"].to_numpy().astype(np.float64)
            chance = float(face.units["weight_cosine"].attrs.get("chance", np.nan))
            overlap = np.array(_mean_interval(found))
        ratio = participation_ratio(face.activations[:, living])
        rows.append(
            {
                "site": site,
                "units": int(living.sum()),
                "images": len(face.rows),
                "participation_ratio": ratio,
                "participation_share": ratio / max(1, int(living.sum())),
                "weight_cosine": overlap[0],
                "weight_cosine_low": overlap[1],
                "weight_cosine_high": overlap[2],
                "weight_cosine_chance": chance,
            }
        )
    table = pd.DataFrame(rows)[list(MEANINGS)]
    add_table(run, "superposition", table, meanings=MEANINGS)
    table.attrs = {"columns": MEANINGS}
    return table


def _mean_interval(values: Floats) -> tuple[float, float, float]:
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return (float(known.mean()) if len(known) else float("nan"), float("nan"), float("nan"))
    mean, reach = float(known.mean()), 1.96 * float(known.std(ddof=1) / np.sqrt(len(known)))
    return mean, mean - reach, mean + reach
