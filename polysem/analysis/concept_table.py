"""Which concepts excite every unit of a run, as a table: for runs on data that carries concepts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from polysem.analysis.concepts import concept_aurocs, count_concepts
from polysem.analysis.faces import Face, chosen_sites, faces
from polysem.errors import RunError
from polysem.progress import progress_bar
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["MEANINGS", "concepts"]

#: Columns of ``tables/concepts.parquet``, one row a face of a unit.
MEANINGS = {
    "site": "where in the network",
    "unit": "index of the unit at its site",
    "tail": "upper or lower: a unit that fires both ways has two faces",
    "images": "images whose activations are stored (all with --pooled, else a sample)",
    "best_concept": "concept that the activation tells best from the rest",
    "best_auroc": "its area under the ROC curve, 0.5 chance to 1 (INVERT, Bykov et al. 2023)",
    "count": "independent concepts that excite the unit: greedy set cover, each found by a "
    "permutation test (level 0.01) among the images that show none of those before it",
    "concepts": "these concepts, the surest first, separated by commas",
}


def concepts(run: Run, *, sites: str | None = None, progress: bool = True) -> pd.DataFrame:
    """Find the annotated concepts that excite every unit, and keep the table in the run.

    Parameters
    ----------
    run : Run
        Of data that says which concepts its images show.
    sites : str, optional
        Globs of sites, comma-separated; by default all.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    DataFrame
        One row a face (site, unit, tail); columns as in `MEANINGS`. Also written to
        ``tables/concepts.parquet``.

    Raises
    ------
    PolysemError
        The run carries no concepts, a site is not there, or the disk is full.
    """
    if not run.has_table("shown"):
        raise RunError(
            f"{run.path} does not say which concepts its images show: probe data that does, such "
            "as shapes; polysem polysemanticity scores units without"
        )
    shown = run.table("shown").set_index("image").loc[run.images["image"]]
    todo = [face for site in chosen_sites(run, sites) for face in faces(run, site)]
    parts = []
    with progress_bar(unit="faces", show=progress) as move:
        for done, face in enumerate(todo):
            parts.append(_rows(face, shown))
            move("concepts", done + 1, len(todo))
    table = pd.concat(parts, ignore_index=True)
    add_table(run, "concepts", table, meanings=MEANINGS)
    return table


def _rows(face: Face, shown: pd.DataFrame) -> pd.DataFrame:
    names = np.array(shown.columns, dtype=object)
    presence = shown.to_numpy(dtype=np.bool_)[face.rows]
    aurocs = np.nan_to_num(concept_aurocs(face.activations, presence), nan=-1.0)
    best = aurocs.argmax(0)
    found = aurocs.max(0)
    counts, chosen = count_concepts(face.activations, presence)
    return pd.DataFrame(
        {
            "site": face.site,
            "unit": np.arange(face.n_units),
            "tail": face.tail,
            "images": len(face.rows),
            "best_concept": np.where(found >= 0, names[best], None),
            "best_auroc": np.where(found >= 0, found, np.nan),
            "count": counts,
            "concepts": [", ".join(names[row[row >= 0]]) for row in chosen],
        }
    )
