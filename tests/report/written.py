"""What a figure says, and whether it can be read: its texts, where they are, how they collide."""

from __future__ import annotations

from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return every visible text with its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = []
    for axes in figure.axes:
        for text in axes.findobj(Text):
            if text.get_text().strip() and text.get_visible() and not _is_hidden(text, axes):
                box = text.get_window_extent(canvas.get_renderer())
                # a slanted line claims a box that is mostly empty
                if text.get_rotation() in (0, 90):
                    found.append((text.get_text(), box))
    return found


def _is_hidden(text: Text, axes: Axes) -> bool:
    if not axes.axison:
        return text in {t for axis in (axes.xaxis, axes.yaxis) for t in axis.findobj(Text)}
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if text in (tick.label1, tick.label2):
                return not min(limits) <= tick.get_loc() <= max(limits)
    return False


def texts(figure: Figure) -> list[str]:
    return [text for text, _ in boxes(figure)]


def check_legible(figure: Figure) -> list[str]:
    """Fail if two texts overlap, or one leaves the page; else return them all."""
    found = boxes(figure)
    page = figure.bbox.padded(1)
    for text, box in found:
        assert page.x0 <= box.x0 and box.x1 <= page.x1, f"{text!r} leaves the page"
        assert page.y0 <= box.y0 and box.y1 <= page.y1, f"{text!r} leaves the page"
    for (one, a), (other, b) in combinations(found, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        # boxes hold the whole line; letters of lines that follow closely do not touch
        assert wide <= 1 or high <= 4, f"{one!r} and {other!r} overlap by {wide:.0f}×{high:.0f}"
    return [text for text, _ in found]
