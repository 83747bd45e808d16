"""One unit from the first to the last snapshot: what excited it then, and what does now."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polysem.report.exemplars import OUTLINED, Images
from polysem.report.page import (
    GREY,
    INNER,
    MARGIN,
    TAIL_COLOURS,
    TAIL_NAMES,
    WIDTH,
    figure_of,
    number,
    page,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.report.site_sheet import draw_row
from polysem.report.unit import aspect, open_unit, unit_name
from polysem.store.evolution import Evolution

__all__ = ["clear_units", "unit_strip"]

#: Images in a row, and inches: the words before them, gaps between images and between tails.
_COLUMNS, _WORDS, _GAP, _BETWEEN = 8, 1.75, 0.07, 0.12


def clear_units(evolution: Evolution, n_units: int = 4) -> list[tuple[str, int]]:
    """Return some units worth a look: of sites spread over the network, the most selective each.

    Most selective by the AUROC of the class that a unit tells best, or, where images have no
    labels, of the highest kurtosis. Sites of few units are left out where others have many.
    """
    table = evolution.table("trajectories")
    last = table[(table["step"] == evolution.steps[-1]) & ~table["dead"]]
    score = "best_class_auroc" if last["best_class_auroc"].notna().any() else "kurtosis"
    best = last.loc[last.dropna(subset=[score]).groupby("site", sort=False)[score].idxmax()]
    sizes = table.groupby("site", sort=False)["unit"].nunique()
    best = best[best["site"].map(sizes >= min(20, sizes.max()))]
    every = max(1, len(best) - 1) / max(1, n_units - 1)
    chosen = sorted({min(round(i * every), len(best) - 1) for i in range(n_units)} - {-1})
    return [(str(best["site"].iloc[i]), int(best["unit"].iloc[i])) for i in chosen]


@styled
def unit_strip(evolution: Evolution, site: str, unit: int, images: Images) -> Figure:
    """Draw the exemplars of one unit at each snapshot, a row each, the first on top.

    Parameters
    ----------
    evolution : Evolution
    site, unit : str, int
        Which unit of the final network; earlier ones are those that it was followed to.
    images : callable
        As in `figures.contact_sheet`.

    Returns
    -------
    Figure
        Ten inches wide.

    Raises
    ------
    SpecError
        If there is no such site or unit.
    """
    final = evolution.run(evolution.steps[-1])
    open_unit(final, site, unit)  # says what is wrong with a name
    table = evolution.table("trajectories")
    mine = table[(table["site"] == site) & (table["unit"] == unit)]
    tails = [str(tail) for tail in mine["tail"].unique()]
    free = INNER - _WORDS - (len(tails) - 1) * _BETWEEN - (_COLUMNS - 1) * _GAP
    cell, most = free / _COLUMNS, _COLUMNS // len(tails)
    picture = cell * aspect(final)
    high, head = max(picture + 0.27, 0.85), 1.0
    foot = head + high * len(evolution.steps)
    sheet = page(WIDTH, foot + 0.3)
    words = f"{evolution.manifest['model']['name']} on {evolution.manifest['data']['name']}"
    write_title(sheet, f"{site} · {unit_name(final, site, unit)} over training", words)
    starts = {
        tail: MARGIN + _WORDS + i * (most * (cell + _GAP) + _BETWEEN)
        for i, tail in enumerate(tails)
    }
    for tail, left in starts.items():
        colour = TAIL_COLOURS[tail]
        write(sheet, left, head - 0.1, TAIL_NAMES[tail], size=8, weight="bold", colour=colour)
    for row, step in enumerate(evolution.steps):
        top, now = head + row * high, mine[mine["step"] == step]
        write(sheet, MARGIN, top + 0.13, f"step {step:,}", size=8.5, weight="bold")
        _write_facts(sheet, top + 0.27, now, unit)
        followed = now["followed_unit"].iloc[0]
        if pd.isna(followed):
            continue
        run = evolution.run(step)
        then = open_unit(run, site, int(followed))
        for tail, start in starts.items():
            if not then.dead:
                draw_row(sheet, (start, top, cell, picture), run, then, tail, images, most)
    notes = "r: correlation with its final self over all images."
    if final.manifest["sites"][site]["grid"] is not None:
        notes = f"{OUTLINED} {notes}"
    write_notes(sheet, foot + 0.12, [notes])
    return figure_of(sheet)


def _write_facts(sheet: Axes, top: float, now: pd.DataFrame, unit: int) -> None:
    """Write, beside a row, what the unit was called and how near it was to its final self."""
    rows = now.to_dict("records")
    labels = [None if pd.isna(row["label"]) else str(row["label"]) for row in rows]
    lines = [" / ".join(label or "no label" for label in labels)] if any(labels) else []
    followed = rows[0]["followed_unit"]
    moved = pd.notna(followed) and followed != unit
    if moved:
        lines.append(f"unit {followed} then")
    name = "matched_correlation" if moved else "correlation"
    lines.append("r " + " / ".join(number(float(row[name]), 2) for row in rows))
    if any(pd.notna(row["excess_rank"]) for row in rows):
        scores = (number(float(row["excess_rank"]), 2) for row in rows)
        lines.append("excess rank " + " / ".join(scores))
    for i, line in enumerate(lines):
        write(sheet, MARGIN, top + 0.135 * i, line, width=_WORDS - 0.1, size=7, colour=GREY)
