"""The contact sheet: all that a run knows of one unit, on one page.

From a run folder and a function that gives the pixels the model saw. Figures are drawn without
pyplot and its global state, any number of them, in any thread.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polysem.report import exemplars as pictures
from polysem.report.exemplars import CAPTION_LINE, Images
from polysem.report.names import facet_phrase, name_line
from polysem.report.page import (
    GREY,
    INK,
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
from polysem.report.panels import (
    class_rows,
    draw_class_profile,
    draw_histogram,
    write_statistics,
)  # fmt: skip
from polysem.report.unit import Caption, Exemplar, Unit, aspect, captions, described, open_unit
from polysem.store.run import Run

__all__ = ["contact_sheet", "striking_units"]

_COLUMNS, _GAP = 8, 0.1

#: Height of a line that says what the unit is called, inches.
_NAME_LINE = 0.15


def striking_units(run: Run, site: str, n_units: int = 12) -> list[int]:
    """Return the units of a site with the highest kurtosis over images, dead ones left out.

    A high kurtosis means that few images excite a unit far more than the rest do.
    """
    units = run.units(site)
    kurtosis = units["kurtosis"].isel(pool=0).to_numpy()
    alive = ~(units["dead"].to_numpy() | np.isnan(kurtosis))
    order = np.argsort(-np.where(alive, kurtosis, -np.inf), kind="stable")
    return [int(unit) for unit in order[: min(n_units, int(alive.sum()))]]


@styled
def contact_sheet(
    run: Run, site: str, unit: int, images: Images, *, n_exemplars: int = 16
) -> Figure:
    """Draw all that a run knows of one unit on one page.

    What it is called, where it was named; the exemplars of each tail with the region that
    activates the unit, its distribution over images, its mean by class, and its statistics.

    Parameters
    ----------
    run : Run
        The run.
    site, unit : str, int
        Which unit.
    images : callable
        From the index of an image in the data to the pixels that the model saw, a PIL image. It
        raises a PolysemError or LookupError for an image that is no longer there, which leaves a
        grey box.
    n_exemplars : int, default 16
        Exemplars drawn per tail, at most as many as the run keeps.

    Returns
    -------
    Figure
        Ten inches wide; `report.page.save` writes it.

    Raises
    ------
    SpecError
        If the site was not recorded, or has no such unit.
    """
    one = open_unit(run, site, unit)
    tails = one.tails[:1] if one.dead else one.tails
    found = {tail: [] if one.dead else one.exemplars(tail, n_exemplars) for tail in tails}
    said = captions(run, [e.image for tail in found.values() for e in tail])
    lines = {image: pictures.caption_lines(caption) for image, caption in said.items()}
    cell = (INNER - (_COLUMNS - 1) * _GAP) / _COLUMNS
    picture = cell * aspect(run)
    rows = {
        tail: [
            _caption_height(some[i : i + _COLUMNS], lines) for i in range(0, len(some), _COLUMNS)
        ]
        for tail, some in found.items()
    }
    n_classes = 0
    if not one.dead and (means := one.class_means(one.pool("upper"))) is not None:
        n_classes = len(class_rows(means))
    charts = min(2.95, max(1.75, 0.145 * n_classes + 0.3))
    names = {tail: [] if one.dead else _names(run, site, unit, tail) for tail in rows}
    head, section = 0.72, {tail: 0.3 + _NAME_LINE * len(said) for tail, said in names.items()}
    height = head + sum(section[t] + sum(row) + len(row) * picture for t, row in rows.items())
    notes = _footnote(one, found, list(said.values()))
    height += 0.15 + 0.12 * len(notes) + (0 if one.dead else charts + 0.82)
    sheet = page(WIDTH, height)
    write_title(sheet, f"{one.site} · {one.name}", described(run))
    top = head
    for tail, some in found.items():
        _write_section(sheet, top, one, tail, len(some), run)
        for line, text in enumerate(names[tail]):
            write(sheet, MARGIN, top + 0.17 + _NAME_LINE * (line + 1), text, width=INNER, size=8)
        top += section[tail]
        for row, captions_below in enumerate(rows[tail]):
            for column, exemplar in enumerate(some[row * _COLUMNS : (row + 1) * _COLUMNS]):
                left = MARGIN + column * (cell + _GAP)
                pixels = pictures.read_image(images, exemplar.image)
                box = (left, top, cell, picture)
                key = said[exemplar.image].key
                pictures.draw_exemplar(
                    sheet, box, exemplar, pixels, tail=tail, base=one.base, key=key
                )
                pictures.write_caption(
                    sheet,
                    left,
                    top + picture,
                    cell,
                    rank=row * _COLUMNS + column + 1,
                    exemplar=exemplar,
                    lines=lines[exemplar.image],
                )
            top += picture + captions_below
    if not one.dead:
        _draw_charts(sheet, top + 0.1, charts, run, one, found, n_classes)
    write_notes(sheet, height - 0.12 * len(notes), notes)
    return figure_of(sheet)


def _names(run: Run, site: str, unit: int, tail: str) -> list[str]:
    """Return what a unit is called, and its facets, a line each; none if it was not named."""
    called, parts = name_line(run, site, unit, tail), facet_phrase(run, site, unit, tail)
    lines = [] if called is None else [f"Called {called}"]
    return lines if parts is None else [*lines, f"Facets: {parts}"]


def _write_section(sheet: Axes, top: float, unit: Unit, tail: str, count: int, run: Run) -> None:
    """Write the heading of a tail: what it is ranked by, and why images may be missing."""
    name, colour = TAIL_NAMES[tail], TAIL_COLOURS[tail]
    pool, n_images = unit.pool(tail), run.manifest["n_images"]
    said = ["length of the head's output"] if unit.name.startswith("head") else []
    said += {"max": ["maximum over patches"], "min": ["minimum over patches"]}.get(pool, [])
    said += [f"{count:,} of {n_images:,} images"]
    text = ", ".join(said)
    if unit.dead:
        name, colour = "Dead", INK
        text = f"the same value on every image: {number(unit.get('max', pool))}"
    elif count == 0:
        text = "no image: the unit is above 0 on none"
    elif (
        count
        == int(unit.statistics["n_exemplars"].sel(tail=tail))
        < min(unit.statistics.sizes["rank"], n_images)
    ):
        text += "; the unit is above 0 on no other"
    width = write(sheet, MARGIN, top + 0.17, name, size=9, weight="bold", colour=colour)
    write(sheet, MARGIN + width + 0.1, top + 0.17, text, size=8, colour=GREY)


def _draw_charts(
    sheet: Axes,
    top: float,
    height: float,
    run: Run,
    unit: Unit,
    found: dict[str, list[Exemplar]],
    n_classes: int,
) -> None:
    table = 1.0 + 0.62 * len(unit.pools)
    space = INNER - table - (0.5 if n_classes else 0.25) - 0.45
    histogram = 0.46 * space if n_classes else space
    left = MARGIN + 0.4
    n_sampled = unit.statistics.sizes["sample"]
    sample = "" if n_sampled == run.manifest["n_images"] else "a sample of "
    headings = [(MARGIN, f"Distribution over {sample}{n_sampled:,} images")]
    draw_histogram(sheet, (left, top + 0.22, histogram, height), unit, found)
    if n_classes:
        profile = left + histogram + 0.3
        headings.append((profile, "Mean by class"))
        box = (profile, top + 0.22, space - histogram, height)
        draw_class_profile(sheet, box, unit, run.classes)
    headings.append((WIDTH - MARGIN - table, "Statistics over all images"))
    write_statistics(sheet, (WIDTH - MARGIN - table, top + 0.22, table, height), unit)
    for x, heading in headings:
        write(sheet, x, top + 0.09, heading, size=8, weight="bold")


def _footnote(unit: Unit, found: dict[str, list[Exemplar]], said: list[Caption]) -> list[str]:
    """Return how to read the picture, in so many words as this one needs."""
    parts = []
    if any(e.activation is not None and e.activation.size > 1 for s in found.values() for e in s):
        parts.append(pictures.OUTLINED)
    if any(found.values()):
        parts.append(f"Under an image: rank, activation, {pictures.explain_captions(said)}.")
    notes = [" ".join(parts)] if parts else []
    if not unit.dead:
        note = "Above the histogram: median (dot), middle half (bar), 1 to 99 % (line), exemplars."
        if unit.class_means(unit.pools[0]) is not None:
            note += " By class: mean activation, joined to the mean over all images."
        notes.append(note)
    return notes


def _caption_height(exemplars: list[Exemplar], lines: dict[int, list[str]]) -> float:
    return CAPTION_LINE * (1 + max(len(lines[e.image]) for e in exemplars)) + 0.13
