"""What units are called, in words: from the tables of names to lines, phrases and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from polysem.errors import SpecError
from polysem.report.markdown import escaped
from polysem.report.page import number
from polysem.report.unit import described, unit_name
from polysem.store.run import Run

__all__ = [
    "NO_NAME", "facet_phrase", "labels_markdown", "name_line", "phrases",
]  # fmt: skip

#: What is said where no concept fits better than chance.
NO_NAME = "no fitting name"

_FACE = ["site", "unit", "tail"]

_READING = (
    "p: how often images drawn at random find as good a name. q: false discovery rate. AUROC: on "
    "images that the name was not found on, how well likeness to it tells the top 5 % from the "
    "others; 0.5 is chance. A unit that fires in both directions is named twice."
)


def phrases(facet_labels: pd.DataFrame) -> pd.DataFrame:
    """Return the names of each face's facets with their shares, as one phrase.

    Facets of the same name count as one. Largest share first.

    Parameters
    ----------
    facet_labels : DataFrame
        The table of that name.

    Returns
    -------
    DataFrame
        Columns site, unit, tail, facets (how many different names, or none) and names, such as
        ``red circle 62 % · striped 31 %``.
    """
    first = facet_labels[facet_labels["rank"] == 1]
    called = first.assign(concept=first["concept"].where(first["named"], NO_NAME))
    shares = called.groupby([*_FACE, "concept"], sort=False)["share"].sum().reset_index()
    shares = shares.sort_values("share", ascending=False, kind="stable")
    said = shares["concept"] + (100 * shares["share"]).map(" {:.0f} %".format)
    found = shares.assign(names=said).groupby(_FACE, sort=False)["names"]
    table = found.agg(["size", " · ".join]).reset_index()
    table.columns = pd.Index([*_FACE, "facets", "names"])
    return table.sort_values(_FACE, kind="stable", ignore_index=True)


def facet_phrase(run: Run, site: str, unit: int, tail: str) -> str | None:
    """Return the names of a unit's facets with their shares; None where facets have no names."""
    rows = _rows(run, "facet_labels", site, unit, tail)
    return None if rows is None or rows.empty else str(phrases(rows)["names"].iloc[0])


def name_line(run: Run, site: str, unit: int, tail: str) -> str | None:
    """Return what a unit is called and how sure that is, in one line; None if it was not named."""
    rows = _rows(run, "labels", site, unit, tail)
    if rows is None or rows.empty:
        return None
    best: Any
    others: list[Any]
    best, *others = rows.sort_values("rank").itertuples()
    seen = f"by {best.n_exemplars:,} {best.seen}"
    evidence = f"p {number(best.p_value, 2)}, q {number(best.q_value, 2)}, {seen}"
    if not best.named:
        return f"{NO_NAME}; nearest is “{best.concept}” ({evidence})"
    tested = f"AUROC {number(best.auroc, 2)} on other images"
    also = ", ".join(str(other.concept) for other in others)
    return f"“{best.concept}” ({evidence}; {tested})" + (f"; then {also}" if also else "")


def labels_markdown(
    run: Run,
    labels: pd.DataFrame,
    facet_labels: pd.DataFrame | None = None,
    head_labels: pd.DataFrame | None = None,
) -> str:
    """Return names as a Markdown document, a table for each site.

    Parameters
    ----------
    run : Run
    labels, facet_labels, head_labels : DataFrame
        The tables of these names.
    """
    lines = [f"# Names: {escaped(described(run))}", "", _READING, ""]
    first = labels[labels["rank"] == 1]
    if facet_labels is not None:
        first = first.merge(phrases(facet_labels), how="left", on=_FACE)
    for site, rows in first.groupby("site", sort=False):
        named = int(rows["named"].sum())
        lines += [f"## {escaped(str(site))}", ""]
        lines += [f"{named:,} of {len(rows):,} have a fitting name.", ""]
        lines += [*_table(_unit_cells(run, str(site), rows, facet_labels is not None)), ""]
    if head_labels is not None:
        best = head_labels[head_labels["rank"] == 1]
        lines += ["## Attention heads", "", *_table(_head_cells(best)), ""]
    return "\n".join(lines)


def _rows(run: Run, table: str, site: str, unit: int, tail: str) -> pd.DataFrame | None:
    try:
        labels = run.table(table)
    except SpecError:
        return None
    here = (labels["site"] == site) & (labels["unit"] == unit) & (labels["tail"] == tail)
    return labels[here]


def _unit_cells(run: Run, site: str, rows: pd.DataFrame, facets: bool) -> Iterator[list[str]]:
    both = rows["tail"].nunique() > 1
    yield ["unit", *(["tail"] if both else []), "name", "p", "q", "AUROC",
           *(["facets"] if facets else [])]  # fmt: skip
    row: Any
    for row in rows.itertuples():
        tail = [row.tail] if both else []
        several = [row.names if isinstance(row.names, str) else ""] if facets else []
        yield [unit_name(run, site, row.unit), *tail, *_said(row), *several]


def _head_cells(rows: pd.DataFrame) -> Iterator[list[str]]:
    yield ["head", "by", "name", "p", "q", "AUROC"]
    row: Any
    for row in rows.itertuples():
        yield [f"{row.layer}.{row.head}", row.by, *_said(row)]


def _said(row: Any) -> list[str]:
    """Return name, p, q and AUROC of a row of names."""
    concept = str(row.concept) if row.named else NO_NAME
    values = (row.p_value, row.q_value, row.auroc)
    return [concept, *(number(float(value), 2) for value in values)]


def _table(rows: Iterator[list[str]]) -> list[str]:
    head, *body = ([escaped(cell) for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
