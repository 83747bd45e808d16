"""The rows of the atlas: every face of every unit, with all scores and names that a run holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from polysem.report.site.parts import Missing
from polysem.store.run import Run
from polysem.store.schema import ranking_pool

__all__ = ["KEYS", "Score", "add_table_of_faces", "all_faces", "missing_tables", "scores_of"]

#: What names a face: where, which unit, and whether it is about its highest or lowest values.
KEYS = ["site", "unit", "tail"]

#: Statistics of the probe that stand beside the scores.
_STATISTICS = {
    "kurtosis": "excess kurtosis over images, 0 if normal; higher: fewer images excite it",
    "sparsity": "Hoyer sparsity over images, 0 even to 1 sparse",
    "mean": "mean activation over images",
    "max": "largest activation over images",
    "min": "smallest activation over images",
    "positive_share": "share of images with a value above 0",
}

#: Columns that each table adds to the faces, and the command that makes the table.
_TABLES: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "polysemanticity": (
        (
            "excess_rank", "ms", "ms_above_chance", "selectivity", "effective_classes",
            "best_class", "best_class_auroc", "hoyer", "treves_rolls", "gini", "half_mass_share",
            "near_max_share", "tail_ratio", "clarity", "redundancy", "two_centre",
        ),
        "polysem polysemanticity {run}",
        "Scores of how many things a unit answers to",
    ),
    "unit_facets": (
        ("facets", "effective_facets", "silhouette", "excess", "stability"),
        "polysem facets {run}",
        "Facets of units",
    ),
    "concepts": (
        ("best_concept", "best_auroc", "count", "concepts"),
        "polysem concepts {run}",
        "Annotated concepts that excite units",
    ),
    "clusters": (
        ("cluster", "firmness", "map_x", "map_y"),
        "polysem clusters {run}",
        "Groups of units and their map",
    ),
    "labels": (
        ("concept", "p_value", "q_value", "named", "auroc", "rank_correlation"),
        "polysem describe-neurons {run} --clip MODEL",
        "Names of units",
    ),
}  # fmt: skip

#: Columns that are no score: they name, place, or are told otherwise.
_NO_SCORE = {"map_x", "map_y", "cluster", "named", "p_value"}

#: Titles of scores whose column does not read as words.
_TITLES = {
    "ms": "Monosemanticity",
    "ms_above_chance": "Monosemanticity above chance",
    "hoyer": "Hoyer sparsity",
    "best_auroc": "AUROC of the best concept",
    "best_class_auroc": "AUROC of the best class",
    "auroc": "AUROC of the name",
    "rank_correlation": "Rank correlation with the name",
    "q_value": "q-value of the name",
    "count": "Independent concepts",
    "excess": "Evidence for facets",
    "silhouette": "Silhouette of facets",
    "stability": "Stability of facets",
    "sparsity": "Sparsity over images",
    "max": "Largest activation",
    "min": "Smallest activation",
    "mean": "Mean activation",
    "positive_share": "Share above 0",
    "firmness": "Firmness in its group",
    "treves_rolls": "Treves–Rolls sparsity",
    "gini": "Gini index",
    "two_centre": "Two-centre score",
}


@dataclass(frozen=True)
class Score:
    """One number of every face.

    Attributes
    ----------
    name, title, meaning : str
        Its column, its title on pages, and what it says.
    """

    name: str
    title: str
    meaning: str


def all_faces(run: Run) -> pd.DataFrame:
    """Return one row a face of the run, in network order, with what every table says of it.

    Columns are `KEYS`, ``dead``, and those of the tables that the run holds. Where a name or a
    score is missing it is NaN or None.
    """
    faces = _recorded(run)
    for table, (columns, _, _) in _TABLES.items():
        if run.has_table(table):
            faces = add_table_of_faces(faces, run.table(table), columns)
    return faces


def add_table_of_faces(
    faces: pd.DataFrame, table: pd.DataFrame, columns: tuple[str, ...]
) -> pd.DataFrame:
    """Return faces with columns of a table joined by `KEYS`; of ranked rows the first counts."""
    if "rank" in table:
        table = table[table["rank"] == table["rank"].min()]
    if "tail" not in table:
        table = table.assign(tail="upper")
    kept = [name for name in columns if name in table.columns]
    one = table[KEYS + kept].drop_duplicates(KEYS)
    return faces.merge(one, on=KEYS, how="left")


def _recorded(run: Run) -> pd.DataFrame:
    parts = []
    for site, facts in run.manifest["sites"].items():
        units = run.units(site)
        n_units, n_tails = units.sizes["unit"], len(facts["tails"])
        columns = {
            name: np.stack([
                units[name].sel(pool=ranking_pool(facts["pools"], tail)).to_numpy()
                for tail in facts["tails"]
            ], axis=1).reshape(-1)
            for name in _STATISTICS
        }  # fmt: skip
        columns["dead"] = np.repeat(units["dead"].to_numpy(), n_tails)
        names = {
            "site": site,
            "unit": np.repeat(np.arange(n_units), n_tails),
            "tail": np.tile(facts["tails"], n_units),
        }
        parts.append(pd.DataFrame(names | columns))
    return pd.concat(parts, ignore_index=True)


def scores_of(run: Run, faces: pd.DataFrame) -> list[Score]:
    """Return the scores that faces can be sorted by, those of the tables first."""
    found = []
    for table, (columns, _, _) in _TABLES.items():
        said = run.table(table).attrs.get("columns", {}) if run.has_table(table) else {}
        for name in columns:
            if name not in _NO_SCORE and _is_score(faces, name):
                found.append(Score(name, _title(name), str(said.get(name, ""))))
    found += [
        Score(name, _title(name), said)
        for name, said in _STATISTICS.items()
        if _is_score(faces, name)
    ]
    return found


def missing_tables(run: Run) -> list[Missing]:
    """Return which tables of faces the run does not hold, and what would add them.

    Concepts are only missed where the data say which ones their images show.
    """
    possible = set(_TABLES) - ({"concepts"} if not run.has_table("shown") else set())
    return [
        Missing(what, command.format(run=run.path))
        for table, (_, command, what) in _TABLES.items()
        if table in possible and not run.has_table(table)
    ]


def _is_score(faces: pd.DataFrame, name: str) -> bool:
    return (
        name in faces
        and pd.api.types.is_numeric_dtype(faces[name])
        and bool(faces[name].notna().any())
    )


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " ").capitalize())
