"""The page that every picture is set on: inches from the top left, one style, text that fits.

Pictures place everything by hand in inches instead of leaving it to a layout engine, so that
columns line up across panels and a long class name is shortened rather than pushing others away.
"""

from __future__ import annotations

import math
import os
import unicodedata
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from polysem.errors import RunError, SpecError

__all__ = [
    "GREY", "INK", "INNER", "LIGHT", "MARGIN", "SUFFIXES", "TAIL_COLOURS", "TAIL_NAMES", "WIDTH",
    "check_suffix", "figure_of", "fit", "number", "page", "panel", "readable", "save", "styled",
    "text_width", "write", "write_notes", "write_title",
]  # fmt: skip

INK, GREY, LIGHT = "#1f1f1f", "#6b6b6b", "#d4d4d4"

#: Vermilion and blue of Okabe and Ito's palette, told apart with any colour vision.
TAIL_COLOURS = {"upper": "#d55e00", "lower": "#0072b2"}

TAIL_NAMES = {"upper": "Highest", "lower": "Lowest"}

#: Inches: the width of a page, the margin left and right, and what is between.
WIDTH, MARGIN = 10.0, 0.35
INNER = WIDTH - 2 * MARGIN

#: The file types that `save` writes.
SUFFIXES = (".png", ".pdf", ".svg")

_DPI = 150

#: Families tried for scripts that DejaVu Sans, which comes with matplotlib, does not cover.
_OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei",
    "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip

_FAMILIES = ["DejaVu Sans", *(f for f in _OTHER_SCRIPTS if f in fontManager.get_font_names())]

_STYLE = {
    "figure.dpi": _DPI,
    "font.family": _FAMILIES,
    "font.size": 7.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5_bill$"
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.labelsize": 7.0,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "image.composite_image": False,
    "legend.frameon": False,
    "lines.solid_capstyle": "butt",
    "svg.hashsalt": "polysem",  # the same picture is the same file
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
}

#: Decorator: the picture is drawn in polysem's style, whatever the user's matplotlibrc says.
styled = matplotlib.style.context(_STYLE, after_reset=True)


def page(width: float, height: float) -> Axes:
    """Return an empty sheet: axes without a frame whose coordinates are inches from the top left.

    No global state of pyplot is touched.
    """
    sheet = Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    sheet.set_axis_off()
    return sheet


def figure_of(sheet: Axes) -> Figure:
    """Return the figure that a sheet fills."""
    figure = sheet.get_figure()
    assert isinstance(figure, Figure)
    return figure


def panel(sheet: Axes, left: float, top: float, width: float, height: float) -> Axes:
    """Return new axes on a sheet, placed in inches from its top left."""
    figure = figure_of(sheet)
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (
            left / whole_width,
            1 - (top + height) / whole_height,
            width / whole_width,
            height / whole_height,
        )
    )


def write(
    sheet: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: float | None = None,
    size: float = 7.5,
    weight: Literal["normal", "bold"] = "normal",
    colour: str = INK,
    align: Literal["left", "center", "right"] = "left",
    keep: Literal["start", "end"] = "start",
) -> float:
    """Write one line on a sheet, its baseline at `y`, and return how wide it is in inches.

    A line wider than `width` inches loses its end, or its start where `keep` is ``end``.
    """
    text = readable(text)
    if width is not None:
        text = fit(text, width, size=size, weight=weight, keep=keep)
    sheet.text(x, y, text, size=size, weight=weight, color=colour, ha=align, va="baseline")
    return text_width(text, size=size, weight=weight)


def write_title(sheet: Axes, title: str, subtitle: str) -> None:
    """Write title and subtitle; what follows begins 0.72 inches from the top."""
    write(sheet, MARGIN, 0.36, title, width=INNER, size=12, weight="bold")
    write(sheet, MARGIN, 0.54, subtitle, width=INNER, size=8, colour=GREY)


def write_notes(sheet: Axes, y: float, lines: list[str]) -> None:
    """Write the lines at the foot of a page, 0.12 inches apart."""
    for i, line in enumerate(lines):
        write(sheet, MARGIN, y + 0.12 * i, line, width=INNER, size=6.5, colour=GREY)


def text_width(text: str, *, size: float, weight: str = "normal") -> float:
    """Return the width of a line in inches, as PNGs have it: hinting makes small type wider."""
    font = FontProperties(family=_FAMILIES, size=size, weight=weight)
    size_in_dots = _ruler().get_text_width_height_descent(text, font, ismath=False)  # type: ignore[no-untyped-call]
    return float(size_in_dots[0]) / _DPI


@cache
def _ruler() -> RendererAgg:
    return RendererAgg(1, 1, _DPI)  # type: ignore[no-untyped-call]


def fit(
    text: str,
    width: float,
    *,
    size: float,
    weight: str = "normal",
    keep: Literal["start", "end"] = "start",
) -> str:
    """Return `text`, cut with an ellipsis so that it is at most `width` inches wide."""
    text = readable(text)
    if text_width(text, size=size, weight=weight) <= width:
        return text
    low, high = 0, len(text) - 1  # characters kept
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(_cut(text, middle, keep), size=size, weight=weight) <= width:
            low = middle
        else:
            high = middle - 1
    return _cut(text, low, keep)


def _cut(text: str, length: int, keep: str) -> str:
    return f"{text[:length].rstrip()}…" if keep == "start" else f"…{text[len(text) - length :]}"


def readable(text: str) -> str:
    """Return `text` on one line, with a box for every character that no font here can draw."""
    words = "".join(" " if _is_control(c) else c for c in text).split()
    return "".join(c if _is_drawable(c) else "▯" for c in " ".join(words))


def _is_control(character: str) -> bool:
    # Cc control, Cf direction marks and joiners, Cs lone surrogates, Zl and Zp line breaks
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


@cache
def _is_drawable(character: str) -> bool:
    fonts = (get_font(findfont(FontProperties(family=family))) for family in _FAMILIES)
    return any(font.get_char_index(ord(character)) for font in fonts)


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, short enough for a caption.

    >>> number(1234.5), number(0.12345), number(-3.0), number(0.0), number(float("nan"))
    ('1,234', '0.123', '−3.00', '0', '–')
    """
    if math.isnan(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if 1e-3 <= size < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:,.{places}f}"
    else:
        text = f"{size:.{digits - 1}g}"
    return f"−{text}" if value < 0 else text


def check_suffix(out: Path) -> Path:
    """Return the path of a picture if it is of a type that `save` writes.

    Raises
    ------
    SpecError
        If its name ends in another way.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise SpecError(f"{out} is no name for a picture; it has to end in {', '.join(SUFFIXES)}")
    return out


@styled
def save(figure: Figure, out: str | Path) -> Path:
    """Write a picture as PNG, PDF or SVG and return its path; folders are made as needed.

    The file appears when it is whole.

    Raises
    ------
    SpecError
        If the name ends in none of these.
    RunError
        If the place cannot be written.
    """
    out = check_suffix(Path(out).expanduser())
    part = out.with_name(f".{out.stem}.partial-{uuid.uuid4().hex[:8]}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=_DPI, metadata=_undated(out.suffix))
        os.replace(part, out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink()
    return out


def _undated(suffix: str) -> dict[str, Any]:
    """Return metadata without the date, so that the same run gives the same file."""
    return {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(suffix.lower(), {})
