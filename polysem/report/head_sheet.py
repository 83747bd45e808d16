"""One head on one page: the images for which it matters, and where it looks in them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from polysem.errors import SpecError
from polysem.report import exemplars as pictures
from polysem.report.exemplars import CAPTION_LINE, Images
from polysem.report.head_maps import head_facts
from polysem.report.page import (
    GREY,
    INNER,
    MARGIN,
    TAIL_COLOURS,
    WIDTH,
    figure_of,
    number,
    page,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.report.unit import Exemplar, aspect, captions
from polysem.store.run import Run

__all__ = ["head_sheet"]

_COLUMNS, _GAP = 8, 0.1

_TAILS = {
    "upper": ("Needs it", "images whose cost rises most without the head"),
    "lower": ("Better without", "images whose cost falls most without the head"),
}


@styled
def head_sheet(run: Run, layer: int, head: int, images: Images) -> Figure:
    """Draw the images for which a head matters most, each with the patches that it attends to.

    Parameters
    ----------
    run : Run
        Studied by `polysem heads`.
    layer, head : int
        Which head.
    images : callable
        As for `report.figures.contact_sheet`.

    Raises
    ------
    SpecError
        If there is no such head.
    RunError
        If heads were not studied yet.
    """
    gates = run.gates
    layers = gates["layer"].to_numpy().tolist()
    if layer not in layers or not 0 <= head < gates.sizes["head"]:
        raise SpecError(
            f"there is no head {layer}.{head}: layers are {layers[0]} to {layers[-1]}, heads 0 to "
            f"{gates.sizes['head'] - 1}"
        )
    one = gates.sel(layer=layer).isel(head=head)
    gain = (one["cost_zero"] - gates["cost"]).to_numpy().astype(float)
    maps = one["attention_map"].to_numpy().astype(np.float32)
    order = np.argsort(-gain, kind="stable")
    chosen = {
        "upper": [k for k in order[:_COLUMNS] if gain[k] > 0],
        "lower": [k for k in order[::-1][:_COLUMNS] if gain[k] < 0],
    }
    numbers = gates["image"].to_numpy()
    said = captions(run, [int(numbers[k]) for some in chosen.values() for k in some])
    cell = (INNER - (_COLUMNS - 1) * _GAP) / _COLUMNS
    row = 0.3 + cell * aspect(run) + 3 * CAPTION_LINE + 0.15
    height = 1.12 + 2 * row + 0.5
    sheet = page(WIDTH, height)
    write_title(sheet, f"Layer {layer}, head {head}", head_facts(run))
    for i, line in enumerate(_profile(run, layer, head)):
        write(sheet, MARGIN, 0.76 + 0.15 * i, line, width=INNER, size=7.5)
    top = 1.12
    for tail, (name, text) in _TAILS.items():
        wide = write(sheet, MARGIN, top + 0.17, name, size=9, weight="bold",
                     colour=TAIL_COLOURS[tail])  # fmt: skip
        write(sheet, MARGIN + wide + 0.1, top + 0.17,
              text if chosen[tail] else "no image", size=8, colour=GREY)  # fmt: skip
        for column, k in enumerate(chosen[tail]):
            image, left = int(numbers[k]), MARGIN + column * (cell + _GAP)
            # the lower tail is outlined where a map is lowest, and heads look where it is high
            seen = maps[k] if tail == "upper" else -maps[k]
            shown = Exemplar(image, float(gain[k]), seen)
            pixels = pictures.read_image(images, image)
            base = float(np.abs(seen).min()) * (1 if tail == "upper" else -1)
            pictures.draw_exemplar(
                sheet, (left, top + 0.3, cell, cell * aspect(run)), shown, pixels, tail=tail,
                base=base, key=said[image].key,
            )  # fmt: skip
            pictures.write_caption(
                sheet, left, top + 0.3 + cell * aspect(run), cell, rank=column + 1,
                exemplar=shown, lines=pictures.caption_lines(said[image]),
            )  # fmt: skip
        top += row
    notes = [
        "Outlined: where attention, from the class token or else from all patches on average, is "
        "more than halfway from the least to the most attended patch.",
        "Under an image: rank, rise of the cost without the head, "
        f"{pictures.explain_captions(list(said.values()))}.",
    ]
    write_notes(sheet, height - 0.3, notes)
    return figure_of(sheet)


def _profile(run: Run, layer: int, head: int) -> list[str]:
    """Return what the table of heads says of one head, in two lines."""
    rows = run.table("heads").to_dict("records")
    (row,) = (row for row in rows if (row["layer"], row["head"]) == (layer, head))
    low, high = number(row["importance_zero_low"]), number(row["importance_zero_high"])
    parts = [f"importance {number(row['importance_zero'])} ({low} to {high})"]
    if "logit_share" in row:
        parts.append(f"direct logit share {number(row['logit_share'])}")
    parts.append(f"entropy {number(row['pattern_entropy'])} nats")
    parts.append(f"distance {number(row['pattern_distance'])} patches")
    parts.append(f"positional {number(row['fixed_share'], 2)}")
    others = []
    for name, text in (("rival", "fights most with"), ("double", "most redundant with")):
        if int(row[f"{name}_layer"]) >= 0:
            where = f"{int(row[f'{name}_layer'])}.{int(row[f'{name}_head'])}"
            others.append(f"{text} {where} ({number(row[f'{name}_interaction'], 2)})")
    return [" · ".join(parts), " · ".join(others)]
