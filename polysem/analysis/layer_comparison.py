"""Two networks side by side, layer by layer, by the scores of their units.

Intervals are over units: they tell a difference between these two networks on these images from
one of sampling units, not from one of training again with another seed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from polysem.errors import DataError
from polysem.medians import median_difference, median_interval
from polysem.store.run import Run

__all__ = ["MEANINGS", "SCORES", "cliffs_delta", "compare_layers"]

#: Scores that are compared, where both runs have them.
SCORES = (
    "kurtosis", "hoyer", "treves_rolls", "gini", "tail_ratio", "near_max_share",
    "half_mass_share", "selectivity", "effective_classes", "best_class_auroc", "ms",
    "ms_above_chance", "excess_rank", "clarity",
)  # fmt: skip

#: What the columns of the comparison hold.
MEANINGS = {
    "site": "where in both networks",
    "score": "which score; as in tables/polysemanticity.parquet",
    "first": "median over the living faces of the first run's units",
    "first_low": "lower end of its 95 % interval over units",
    "first_high": "upper end",
    "second": "the same of the second run",
    "second_low": "lower end",
    "second_high": "upper end",
    "difference": "first minus second",
    "difference_low": "lower end of its 95 % interval over units of both",
    "difference_high": "upper end",
    "cliffs_delta": "chance that a face of the first scores higher than one of the second, minus "
    "the reverse; -1 to 1, 0 if alike",
    "first_faces": "living faces of the first run",
    "second_faces": "living faces of the second run",
}


def cliffs_delta(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return P(a > b) - P(a < b), in [-1, 1], of two samples without NaN; NaN if one is empty.

    >>> cliffs_delta([2.0, 3.0], [1.0, 2.0])
    0.75
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (len(first) and len(second)):
        return float("nan")
    ranks = scipy.stats.rankdata(np.concatenate([first, second]))[: len(first)]
    wins = ranks.sum() - len(first) * (len(first) + 1) / 2
    return float(2 * wins / (len(first) * len(second)) - 1)


def compare_layers(first: Run, second: Run) -> pd.DataFrame:
    """Return how the units of two runs score at the sites that both have.

    Parameters
    ----------
    first, second : Run
        Both with ``tables/polysemanticity.parquet``, on the same images.

    Returns
    -------
    DataFrame
        A row for each site and score, columns as in `MEANINGS`.

    Raises
    ------
    SpecError
        If a run has no scores yet.
    DataError
        If the runs are on other images, or share no site.
    """
    tables = [run.table("polysemanticity") for run in (first, second)]
    prints = [run.manifest["data"]["fingerprint"] for run in (first, second)]
    if prints[0] != prints[1]:
        raise DataError(
            f"{first.path} and {second.path} were probed on different images "
            f"({first.manifest['data']['name']} and {second.manifest['data']['name']}): their "
            "scores cannot be compared"
        )
    sites = [site for site in tables[0]["site"].unique() if site in set(tables[1]["site"])]
    if not sites:
        raise DataError(f"{first.path} and {second.path} have no scored site in common")
    rows = []
    for site in sites:
        here = [t[(t["site"] == site) & ~t["dead"]] for t in tables]
        for score in SCORES:
            a, b = (t[score].dropna().to_numpy() for t in here)
            if not (len(a) and len(b)):
                continue
            values = [*median_interval(a), *median_interval(b), *median_difference(a, b)]
            rows.append([site, score, *values, cliffs_delta(a, b), len(a), len(b)])
    table = pd.DataFrame(rows, columns=list(MEANINGS))
    table.attrs = {"columns": MEANINGS}
    return table
