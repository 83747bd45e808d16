"""Exemplars on the page: the image as the model saw it, with the region that activates a unit."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from polysem.errors import PolysemError
from polysem.report.page import GREY, TAIL_COLOURS, number, write
from polysem.report.unit import Caption, Exemplar

__all__ = [
    "CAPTION_LINE", "OUTLINED", "Images", "activating_region", "caption_lines",
    "draw_exemplar", "explain_captions", "read_image", "write_caption",
]  # fmt: skip

#: What the outlines mean, for a note.
OUTLINED = "Outlined: where the unit is more than halfway from its mean to its peak in the image."

#: Distance between the lines of a caption, inches.
CAPTION_LINE = 0.125

#: From the index of an image in the data to the pixels that the model saw of it: the centre crop
#: that the activation map covers. It raises a PolysemError or a LookupError where it has none.
Images: TypeAlias = Callable[[int], Image.Image]

#: Share of the way from the average to the peak at which the region is outlined.
_HALF = 0.5

_HALO = withStroke(linewidth=2.4, foreground="white")

#: Opacity of the black laid over what does not activate the unit.
_VEIL = 0.4

#: Points along the longer side of an enlarged map; a smooth outline at any print size.
_FINE = 128


def read_image(images: Images, image: int) -> npt.NDArray[np.uint8] | None:
    """Return RGB pixels [y, x, 3], or None where the image is no longer there."""
    try:
        return np.asarray(images(image).convert("RGB"))
    except (PolysemError, LookupError):
        return None


def activating_region(
    activation: npt.ArrayLike, *, base: float = 0.0, lower: bool = False
) -> tuple[npt.NDArray[np.float32], float] | None:
    """Return an enlarged activation map, and the level that encloses the activating region.

    The region is where the activation is more than halfway from `base` to its peak in this image.

    Parameters
    ----------
    activation : float array [y, x]
        A unit over the patch grid.
    base : float, default 0.0
        What the unit does on average. A peak that does not reach past it is measured from the
        map's farthest value instead.
    lower : bool, default False
        The peak is the lowest value; the map returned is then turned over.

    Returns
    -------
    enlarged : float32 array [y, x]
        Bilinear between the centres of patches, constant beyond the outer ones.
    level : float
        The region is where `enlarged` is at least this.
    None
        If there is no region: the map has one value, or is not finite.
    """
    sign = -1 if lower else 1
    values, base = sign * np.asarray(activation, dtype=np.float32), sign * base
    low, peak = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(peak)) or low == peak:
        return None
    base = base if base < peak else float(low)
    scale = max(1, _FINE // max(values.shape))
    size = (values.shape[1] * scale, values.shape[0] * scale)
    enlarged = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(enlarged), base + _HALF * (float(peak) - base)


def draw_exemplar(
    sheet: Axes,
    box: tuple[float, float, float, float],
    exemplar: Exemplar,
    pixels: npt.NDArray[np.uint8] | None,
    *,
    tail: str,
    base: float,
    key: str,
) -> None:
    """Draw one exemplar into a box (left, top, width, height) of the sheet.

    What lies outside of the activating region is dimmed. An image that is no longer there becomes
    a grey box with its key.
    """
    left, top, width, height = box
    extent = (left, left + width, top + height, top)
    if pixels is None:
        sheet.add_patch(Rectangle((left, top), width, height, facecolor="#efefef", zorder=1))
        _write_placeholder(sheet, box, key)
        return
    # a few pixels are shown as they are, many are reduced with antialiasing
    sheet.imshow(pixels, extent=extent, aspect="auto", interpolation="antialiased", zorder=1)
    region = None
    if exemplar.activation is not None:
        region = activating_region(exemplar.activation, base=base, lower=tail == "lower")
    if region is not None:
        _outline(sheet, box, *region, colour=TAIL_COLOURS[tail])


def _outline(
    sheet: Axes,
    box: tuple[float, float, float, float],
    enlarged: npt.NDArray[np.float32],
    level: float,
    *,
    colour: str,
) -> None:
    left, top, width, height = box
    if enlarged.min() >= level:  # the whole image activates the unit
        inset = 0.01
        sheet.add_patch(
            Rectangle(
                (left + inset, top + inset), width - 2 * inset, height - 2 * inset, fill=False,
                edgecolor=colour, linewidth=1.3, path_effects=[_HALO], zorder=3,
            )
        )  # fmt: skip
        return
    rows, columns = enlarged.shape
    veil = np.zeros((rows, columns, 4), dtype=np.float32)
    veil[..., 3] = _VEIL * (enlarged < level)
    extent = (left, left + width, top + height, top)
    sheet.imshow(veil, extent=extent, aspect="auto", interpolation="bilinear", zorder=2)
    framed = np.pad(enlarged, 1, mode="edge")
    x = left + width * np.concatenate([[0.0], (np.arange(columns) + 0.5) / columns, [1.0]])
    y = top + height * np.concatenate([[0.0], (np.arange(rows) + 0.5) / rows, [1.0]])
    line = sheet.contour(x, y, framed, levels=[level], colors=[colour], linewidths=1.3,
                         linestyles="solid", zorder=3)  # fmt: skip
    line.set_path_effects([_HALO])


def _write_placeholder(sheet: Axes, box: tuple[float, float, float, float], key: str) -> None:
    left, top, width, height = box
    inner = 0.9 * width
    lines = ["not available", *textwrap.wrap(key, max(8, int(inner * 22)))[:3]]
    y = top + height / 2 - 0.055 * (len(lines) - 2)
    for text, size in zip(lines, (6.5, 5.5, 5.5, 5.5), strict=False):
        write(
            sheet, left + width / 2, y, text, width=inner, size=size, colour=GREY, align="center"
        )  # fmt: skip
        y += 0.11


def caption_lines(caption: Caption) -> list[str]:
    """Return what is written under an exemplar, below its rank and value: one line or two."""
    prediction = [f"→ {caption.prediction}"] if caption.prediction is not None else []
    if caption.label is None:
        return prediction or [caption.key]
    if caption.correct is None:
        return [caption.label, *prediction]
    return [f"✓ {caption.label}"] if caption.correct else [caption.label, f"✗ {caption.prediction}"]


def explain_captions(captions: list[Caption]) -> str:
    """Return what the lines of some captions are, in so many words as these need."""
    if all(caption.label is None for caption in captions):
        return "predicted class" if any(c.prediction for c in captions) else "key"
    marks = [
        "✓ predicted right" if any(c.correct for c in captions) else "",
        "✗ taken for" if any(c.correct is False for c in captions) else "",
        "→ predicted class" if any(c.correct is None and c.prediction for c in captions) else "",
    ]
    explained = ", ".join(filter(None, marks))
    return f"class ({explained})" if explained else "class"


def write_caption(
    sheet: Axes,
    left: float,
    top: float,
    width: float,
    *,
    rank: int,
    exemplar: Exemplar,
    lines: list[str],
) -> None:
    """Write rank and value, and under them the lines of `caption_lines`."""
    write(sheet, left, top + CAPTION_LINE, str(rank), size=7, colour=GREY)
    write(
        sheet, left + width, top + CAPTION_LINE, number(exemplar.value), size=7, align="right"
    )  # fmt: skip
    for i, line in enumerate(lines, start=2):
        write(sheet, left, top + i * CAPTION_LINE, line, width=width, size=7)
