"""A circuit drawn: sites as columns, faces as discs, edges as wide as what flows through them."""

from __future__ import annotations

from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from polysem.report.page import (
    GREY,
    INK,
    INNER,
    LIGHT,
    MARGIN,
    TAIL_COLOURS,
    WIDTH,
    figure_of,
    fit,
    page,
    readable,
    styled,
    write,
    write_notes,
    write_title,
)  # fmt: skip
from polysem.sites import parse_site

__all__ = ["circuit_figure", "cluster_figure", "short_site"]

#: Edges that inhibit; those that excite are solid.
_DASHED = (0, (3, 1.5))

_ARROWS = {"upper": "↑", "lower": "↓"}

_TOP, _STEP = 1.3, 0.62


def short_site(site: str) -> str:
    """Return a site as a column is headed.

    >>> short_site("blocks.3.mlp.hook_post"), short_site("hook_pooled")
    ('block 3 MLP', 'pooled')
    """
    parsed = parse_site(site)
    if parsed.layer is None:
        return site.removesuffix(".hook_post").removeprefix("hook_")
    parts = {"mlp.hook_post": "MLP", "attn.hook_z": "heads"}
    part = parts.get(parsed.part, parsed.part.replace("hook_", ""))
    return f"block {parsed.layer} {part}"


@styled
def circuit_figure(graph: nx.DiGraph) -> Figure:
    """Draw the circuit of a unit, a class or a cluster.

    Parameters
    ----------
    graph : DiGraph
        As `analysis.circuit_graph` makes it.
    """
    columns = _columns(graph)
    tallest = max(len(nodes) for _, nodes in columns)
    height = _TOP + tallest * _STEP + 0.95
    sheet = page(WIDTH, height)
    write_title(sheet, f"What feeds {graph.graph['title']}", _subtitle(graph.graph))
    gap = (INNER - 1.3) / (len(columns) - 1)
    place: dict[str, tuple[float, float]] = {}
    for column, (heading, nodes) in enumerate(columns):
        x = MARGIN + 0.6 + column * gap
        write(sheet, x, _TOP - 0.32, heading, size=7.5, colour=GREY, align="center", width=gap)
        first = _TOP + (tallest - len(nodes)) * _STEP / 2
        for row, node in enumerate(nodes):
            place[node] = (x, first + (row + 0.4) * _STEP)
    for source, target, edge in sorted(
        graph.edges(data=True), key=lambda each: abs(each[2]["share"])
    ):
        if source == "image":
            _draw_edge(sheet, place[source], place[target], edge["local"], faint=True)
        else:
            _draw_edge(sheet, place[source], place[target], edge["local"])
    for node, facts in graph.nodes(data=True):
        _draw_node(sheet, place[node], facts, gap)
    notes = [
        "Columns: sites in network order. Disc: one face of a unit (↑ where its activation is "
        "above 0, ↓ below; heads have one); number: share of the target's firing that flows "
        "through it.",
        "Line width: part that the source has in what flows through the disc at its right end "
        "(square root; cut at all of it). Solid vermilion excites, dashed blue inhibits.",
        "Grey: from the image around all sites drawn (residual stream, attention). "
        + _left_out(graph.graph),
    ]
    write_notes(sheet, height - 0.42, notes)
    return figure_of(sheet)


@styled
def cluster_figure(graph: nx.DiGraph, *, most: int = 24) -> Figure:
    """Draw which clusters feed which, as a matrix: rows feed columns.

    Parameters
    ----------
    graph : DiGraph
        As `analysis.circuit_graph.cluster_graph` makes it.
    most : int, default 24
        Clusters drawn, the largest.
    """
    shown = [node for node, facts in graph.nodes(data=True) if facts.get("members")][:most]
    cell = min(0.45, (INNER - 2.6) / max(1, len(shown)))
    left, top = MARGIN + 2.2, 1.6
    others = ("none", "image", "rest")
    height = top + (len(shown) + len(others) + 0.5) * cell + 0.75
    sheet = page(WIDTH, height)
    write_title(sheet, graph.graph["title"].capitalize(), graph.graph["run"])
    for k, node in enumerate(shown):
        write(sheet, left + (k + 0.5) * cell, top - 0.08, node, size=6.5, align="center")
        facts = graph.nodes[node]
        text = f"{facts['label']} {node}" if facts["label"] else node
        y = top + (k + 0.5) * cell + 0.03
        write(sheet, left - 0.08, y, text, size=6.5, align="right", width=2.1)
    write(sheet, left, top - 0.26, "fed cluster", size=7, colour=GREY)
    write(sheet, MARGIN, top - 0.08, "feeding cluster", size=7, colour=GREY)
    words = {"none": "units in no cluster", "image": "image, around", "rest": "rest"}
    rows: dict[str, float] = {node: top + k * cell for k, node in enumerate(shown)}
    for k, name in enumerate(others):
        rows[name] = top + (len(shown) + 0.5 + k) * cell
        write(sheet, left - 0.08, rows[name] + cell / 2 + 0.03, words[name], size=6.5,
              align="right", colour=GREY)  # fmt: skip
    for k, fed in enumerate(shown):
        shares = {s: d["share"] for s, _, d in graph.in_edges(fed, data=True) if s in rows}
        shares |= {name: graph.nodes[fed].get(name, 0.0) for name in others}
        for source, share in shares.items():
            _draw_share(sheet, left + k * cell, rows[source], cell, share)
    notes = [
        "Area of a square: share of the fed cluster's firing, a full cell being all of it or more. "
        "Vermilion, filled: excites; blue, open: inhibits. Shares of a column sum to 1; smaller "
        "than 2 % are not drawn.",
    ]
    write_notes(sheet, height - 0.2, notes)
    return figure_of(sheet)


def _columns(graph: nx.DiGraph) -> list[tuple[str, list[str]]]:
    """Return heading and nodes of each column: the image, sites in network order, the target."""
    target = next(n for n, facts in graph.nodes(data=True) if facts["kind"] == "target")
    units: dict[str, list[str]] = {}
    for node, facts in graph.nodes(data=True):
        if facts["kind"] == "unit":
            units.setdefault(facts["site"], []).append(node)
    columns = [(short_site(site), nodes) for site, nodes in units.items()]
    return [("image", ["image"]), *columns, ("target", [target])]


def _subtitle(facts: dict[str, Any]) -> str:
    how = {"bcos": "exact: activation × dynamic weight, W(x)"}
    firing = f"mean firing {facts['value']:.3g} over {facts['exemplars']} exemplars"
    return f"{firing} · {how.get(facts['method'], facts['method'])} · {facts['run']}"


def _left_out(facts: dict[str, Any]) -> str:
    return (
        f"Edges into the target explain {_percent(facts['kept'])} of its firing; other units "
        f"{_percent(facts['others'])}, around {_percent(facts['image'])}, rest "
        f"{_percent(facts['rest'])}."
    )


def _percent(share: float) -> str:
    """Return a share in words: one digit after the point, a true minus, no negative zero."""
    text = f"{abs(share):.1%}"
    return f"−{text}" if share < 0 and text != "0.0%" else text


def _draw_edge(
    sheet: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    part: float,
    *,
    faint: bool = False,
) -> None:
    colour = LIGHT if faint else TAIL_COLOURS["upper" if part > 0 else "lower"]
    sheet.add_patch(
        FancyArrowPatch(
            start, end, connectionstyle="arc3,rad=0.06", arrowstyle="-",
            linewidth=0.25 + 4 * min(1.0, abs(part)) ** 0.5, alpha=0.7,
            zorder=1 if faint else 2, color=colour, linestyle="-" if part > 0 else _DASHED,
        )
    )  # fmt: skip


def _draw_node(sheet: Axes, at: tuple[float, float], facts: dict[str, Any], gap: float) -> None:
    x, y = at
    if facts["kind"] == "image":
        sheet.add_patch(Circle(at, 0.16, facecolor=LIGHT, edgecolor=GREY, linewidth=0.8, zorder=3))
        return
    target = facts["kind"] == "target"
    face = "white" if target else LIGHT if facts["share"] >= 0 else "white"
    sheet.add_patch(
        Circle(at, 0.17 if target else 0.11, facecolor=face, edgecolor=INK if target else GREY,
               linewidth=1.4 if target else 0.8, zorder=3)
    )  # fmt: skip
    if target:
        site, _, rest = facts["label"].partition(":")
        lines = [f"{short_site(site)} {rest}" if rest else site]
    else:
        heads = parse_site(facts["site"]).unit_dim == "head"
        arrow = "" if heads else _ARROWS[facts["tail"]]
        name = "head " if heads else ""
        lines = [f"{name}{facts['unit']}{arrow} {_percent(facts['share'])}"]
        lines += [facts["label"]] if facts["label"] else []
    for k, line in enumerate(lines):
        text = fit(readable(line), min(0.95 * gap, 1.25), size=6.5)
        sheet.text(
            x, y + 0.25 + 0.11 * k + (0.07 if target else 0), text, size=6.5, ha="center",
            va="baseline",
            zorder=5, bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.6, "linewidth": 0},
        )  # fmt: skip


def _draw_share(sheet: Axes, left: float, top: float, cell: float, share: float) -> None:
    side = cell * 0.94 * min(1.0, abs(share)) ** 0.5
    place = (left + (cell - side) / 2, top + (cell - side) / 2)
    colour = TAIL_COLOURS["upper" if share > 0 else "lower"]
    sheet.add_patch(
        Rectangle(place, side, side, facecolor=colour if share > 0 else "none", edgecolor=colour,
                  linewidth=0.8)
    )  # fmt: skip
