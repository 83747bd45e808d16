"""A comparison of arms as Markdown: who is compared, what to know, the table, how to read it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from polysem.report.markdown import escaped, markdown_table
from polysem.report.page import number
from polysem.store.run import Run

__all__ = ["comparison_markdown", "short_table"]


def comparison_markdown(
    compared: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    notes: Sequence[str],
    *,
    pictures: Sequence[str] = ("forest.png",),
) -> str:
    """Return a comparison as Markdown that GitHub renders.

    Parameters
    ----------
    compared : DataFrame
        As ``comparison.parquet``.
    arms : mapping of str to sequence of Run
    notes : sequence of str
        What has to be known to read it; comes first.
    pictures : sequence of str
        Where they are, from the file.
    """
    title = " against ".join(escaped(name) for name in arms)
    first = next(iter(arms.values()))[0]
    data = first.manifest["data"]["name"]
    lines = [f"# {title}", "", f"{len(first.images):,} images of {escaped(str(data))}.", ""]
    for name, runs in arms.items():
        shown = ", ".join(
            f"{escaped(str(run.manifest['model']['name']))} ({escaped(str(run.path))})"
            for run in runs
        )
        seeds = "1 network" if len(runs) == 1 else f"{len(runs)} networks"
        lines.append(f"- **{escaped(name)}**: {seeds}: {shown}")
    lines += ["", *(f"> {escaped(note)}." for note in notes), ""]
    for picture in pictures:
        lines += [f"![{_PICTURES.get(picture, picture)}]({picture})", ""]
    lines += [*markdown_table(short_table(compared)), "", "## How to read it", "", *_HOW, ""]
    return "\n".join(lines)


_PICTURES = {
    "forest.png": "Effects with their intervals",
    "dropped.png": "Accuracy and loss as heads are dropped at random",
}

_HOW = (
    "- **difference** is the first arm minus the other, of medians over units (means of counts and "
    "shares), averaged over layers and networks. **delta** is Cliff's: the chance that a unit of "
    "the first arm is higher than one of the other at the same layer, minus the reverse.",
    "- Intervals are at 95 %, by a hierarchical bootstrap over what *drawn over* says, given these "
    "images. *drawn over* without seeds: of these networks alone.",
    "- **p** is a permutation test: networks exchanged between arms; with one network in an arm, "
    "units within layers (or images) exchanged between networks, so that p takes the layers as "
    "they are: beside an interval that holds 0, a small one says that layers differ, each in its "
    "own direction. **q** adjusts p over all rows of the two arms (Benjamini and Hochberg). "
    "Missing: nothing can be exchanged.",
    "- What each measure means: `comparison.parquet`, column `meaning`; layers one by one: "
    "`layers.parquet`.",
)


def short_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a comparison that people read, as text."""
    rows = compared.to_dict("records")
    several = len(compared[["arm", "other"]].drop_duplicates()) > 1
    columns: dict[str, list[str]] = {}
    if several:
        columns["arms"] = [f"{row['arm']} − {row['other']}" for row in rows]
    columns |= {
        "table": [str(row["table"]) for row in rows],
        "measure": [str(row["measure"]) for row in rows],
        "site": [str(row["site"]) or "network" for row in rows],
        "value": [number(row["value"]) for row in rows],
        "other": [number(row["other_value"]) for row in rows],
        "difference": [_with_ends(row, "difference") for row in rows],
        "delta": [_with_ends(row, "delta") for row in rows],
        "p": [number(row["p"], 2) for row in rows],
        "q": [number(row["q"], 2) for row in rows],
        "drawn over": [str(row["resampled"]) or "–" for row in rows],
    }
    return pd.DataFrame(columns)


def _with_ends(row: Mapping[Hashable, Any], name: str) -> str:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return number(value) if low != low else f"{number(value)} ({number(low)} to {number(high)})"
