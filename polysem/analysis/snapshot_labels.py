"""What a unit is called at each snapshot: by a concept that fits, or by the class it tells best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import scipy.stats

from polysem.errors import SpecError
from polysem.store.run import Run

__all__ = ["LabelSource", "label_source", "snapshot_labels"]

#: Where labels come from.
LabelSource: TypeAlias = Literal["concepts", "classes"]

#: Chance, for a unit that tells no class from the others, to be given a class.
_LEVEL = 0.05


def label_source(runs: Sequence[Run]) -> LabelSource | None:
    """Return what the units of all runs can be called by; None if by nothing."""
    if all(run.has_table("labels") for run in runs):
        return "concepts"
    return "classes" if runs[0].images["label"].nunique() > 1 else None


def snapshot_labels(run: Run, source: LabelSource) -> pd.Series:
    """Return what each face is called, by site, unit and tail; None where nothing fits.

    Parameters
    ----------
    run : Run
        With names of its units (``labels``), or with scores (``polysemanticity``).
    source : {"concepts", "classes"}
        ``concepts``: the best name, of units that have a fitting one. ``classes``: the class that
        the activation tells best from the rest, where its AUROC is above what a unit that knows no
        class reaches in one of twenty cases (Mann and Whitney's statistic, Bonferroni over
        classes).

    Raises
    ------
    SpecError
        If the run has no such table.
    """
    key = ["site", "unit", "tail"]
    if source == "concepts":
        names = run.table("labels")
        best = names[(names["rank"] == 1) & names["named"]].set_index(key)["concept"]
        return best.astype(object)
    table = run.table("polysemanticity").set_index(key)
    counts = run.images["label"].value_counts()
    if not len(counts):
        raise SpecError(f"{run.path} has neither names of units nor images with labels")
    numbers, classes = counts.index.astype(int), run.classes
    called = [str(number) if classes is None else classes[number] for number in numbers]
    named = dict(zip(called, counts, strict=True))
    n_class = table["best_class"].map(named).to_numpy(dtype=float)
    n = float(len(run.images))
    with np.errstate(invalid="ignore"):
        error = np.sqrt((n + 1) / (12 * n_class * (n - n_class)))
        z = (table["best_class_auroc"].to_numpy() - 0.5) / error
    above = z > scipy.stats.norm.isf(_LEVEL / len(counts))
    return table["best_class"].astype(object).where(above, None)
