"""The site sheet: many units of one site, a row each, to find those worth a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polysem.report.exemplars import OUTLINED, Images, draw_exemplar, read_image
from polysem.report.figures import striking_units
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
from polysem.report.panels import draw_sparkline
from polysem.report.unit import Unit, aspect, captions, described, open_unit
from polysem.store.run import Run

__all__ = ["draw_row", "site_sheet"]

#: Images in a row, and inches: the words before them, the chart after them, gaps between images
#: and between groups.
_COLUMNS, _WORDS, _CHART, _GAP, _BETWEEN = 8, 1.2, 1.25, 0.07, 0.12


@styled
def site_sheet(
    run: Run,
    site: str,
    images: Images,
    *,
    units: Sequence[int] | None = None,
    n_units: int = 12,
) -> Figure:
    """Draw many units of a site, a row each: exemplars, distribution, and a few statistics.

    Parameters
    ----------
    run : Run
        The run.
    site : str
        Which site.
    images : callable
        As in `figures.contact_sheet`.
    units : sequence of int, optional
        Which units, in order; by default the `striking_units` of the site.
    n_units : int, default 12
        How many of these.

    Returns
    -------
    Figure
        Ten inches wide.

    Raises
    ------
    SpecError
        If the site was not recorded, or has no such unit.
    """
    chosen = striking_units(run, site, n_units) if units is None else units
    opened = [open_unit(run, site, unit) for unit in chosen]
    facts = run.manifest["sites"][site]
    tails = facts["tails"]
    most = _COLUMNS // len(tails)
    free = INNER - _WORDS - _CHART - len(tails) * _BETWEEN - (_COLUMNS - 1) * _GAP
    cell = free / _COLUMNS
    picture = cell * aspect(run)
    step, head = max(picture + 0.27, 0.78), 1.0
    foot = head + max(1, len(opened)) * step
    sheet = page(WIDTH, foot + 0.3)
    kind = "heads" if facts["unit"] == "head" else "units"
    order = ", highest kurtosis first" if units is None else ""
    title = f"{site} · {len(opened):,} of {facts['n_units']:,} {kind}{order}"
    write_title(sheet, title, described(run))
    starts = {
        tail: MARGIN + _WORDS + i * (most * (cell + _GAP) + _BETWEEN)
        for i, tail in enumerate(tails)
    }
    for tail, left in starts.items():
        colour = TAIL_COLOURS[tail]
        write(sheet, left, head - 0.1, TAIL_NAMES[tail], size=8, weight="bold", colour=colour)
    last = WIDTH - MARGIN - _CHART
    write(sheet, last, head - 0.1, "Distribution", size=8, weight="bold")
    if not opened:
        write(sheet, MARGIN, head + 0.2, f"all {kind} of this site are dead", size=8, colour=GREY)
    for row, one in enumerate(opened):
        top = head + row * step
        _write_summary(sheet, top, one)
        if one.dead:
            continue
        draw_sparkline(sheet, (last, top, _CHART, picture), one)
        for tail, start in starts.items():
            draw_row(sheet, (start, top, cell, picture), run, one, tail, images, most)
    notes = "Distribution: number of images on a square-root scale, from minimum to maximum."
    if facts["grid"] is not None:
        notes = f"{OUTLINED} {notes}"
    write_notes(sheet, foot + 0.12, [notes])
    return figure_of(sheet)


def draw_row(
    sheet: Axes,
    first: tuple[float, float, float, float],
    run: Run,
    unit: Unit,
    tail: str,
    images: Images,
    most: int,
) -> None:
    """Draw the exemplars of one tail beside each other, from the first box on."""
    start, top, cell, picture = first
    found = unit.exemplars(tail, most)
    said = captions(run, [exemplar.image for exemplar in found])
    for rank, exemplar in enumerate(found):
        left, caption = start + rank * (cell + _GAP), said[exemplar.image]
        pixels = read_image(images, exemplar.image)
        box = (left, top, cell, picture)
        draw_exemplar(sheet, box, exemplar, pixels, tail=tail, base=unit.base, key=caption.key)
        name = caption.label or caption.prediction or ""
        write(sheet, left, top + picture + 0.12, name, width=cell, size=6.5, colour=GREY)


def _write_summary(sheet: Axes, top: float, unit: Unit) -> None:
    write(sheet, MARGIN, top + 0.13, unit.name, size=8.5, weight="bold")
    if unit.dead:
        write(sheet, MARGIN, top + 0.27, "dead", size=7, colour=GREY)
        return
    upper, last = unit.pool("upper"), unit.pool(unit.tails[-1])
    pools = {"kurtosis": upper, "sparsity": upper, "max": upper, "min": last}
    for i, (name, pool) in enumerate(pools.items()):
        y = top + 0.27 + i * 0.13
        write(sheet, MARGIN, y, name, size=7, colour=GREY)
        write(sheet, MARGIN + 0.98, y, number(unit.get(name, pool)), size=7, align="right")
