"""Pictures of circuits: what is drawn where, how wide, and in which style."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from written import check_legible, texts

from polysem.report.circuit_graph import circuit_figure, cluster_figure
from polysem.report.page import LIGHT, TAIL_COLOURS

SITES = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "hook_pooled"]


def circuit(n: int = 3, *, title: str = "class 3 (cat)", label: str = "") -> nx.DiGraph:
    """Return a circuit of `n` faces a site, every second of which inhibits."""
    facts: dict[str, Any] = {
        "title": title, "run": "runs/a", "method": "bcos", "exemplars": 16, "value": 2.5,
        "kept": 0.7, "others": 0.3, "image": -0.0001, "rest": 1e-9,
    }  # fmt: skip
    graph = nx.DiGraph(**facts)
    before: list[str] = []
    for site in SITES:
        now = [f"{site}:{unit}" for unit in range(n)]
        for unit, node in enumerate(now):
            graph.add_node(
                node, kind="unit", site=site, unit=unit, tail="upper", label=label,
                share=(-1) ** unit * 0.1,
            )  # fmt: skip
            for source in before:
                graph.add_edge(source, node, share=0.01, local=(-1) ** unit * 0.25)
        before = now
    graph.add_node("end", kind="target", site="end", unit=-1, tail="", label=title, share=1.0)
    for source in before:
        graph.add_edge(source, "end", share=0.1, local=1.0)
    graph.add_node("image", kind="image", site="image", unit=-1, tail="", label="image")
    graph.add_edge("image", f"{SITES[0]}:0", share=0.1, local=1.0)
    return graph


def lines(figure: Figure) -> list[FancyArrowPatch]:
    return [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]


def test_columns_discs_and_lines() -> None:
    figure = circuit_figure(circuit())
    said = texts(figure)
    assert "What feeds class 3 (cat)" in said and "exact" in " ".join(said)
    for heading in ("image", "block 0 MLP", "block 1 MLP", "pooled", "target"):
        assert heading in said
    assert said.count("0↑ 10.0%") == 3 and said.count("1↑ −10.0%") == 3
    assert any("explain 70.0% of its firing; other units 30.0%, around 0.0%" in t for t in said)
    discs = [p for p in figure.axes[0].patches if isinstance(p, Circle)]
    assert len(discs) == 3 * 3 + 2
    drawn = lines(figure)
    assert len(drawn) == 9 + 9 + 3 + 1
    colours = [to_hex(line.get_edgecolor()) for line in drawn]
    assert colours.count(LIGHT) == 1 and colours.count(TAIL_COLOURS["lower"]) == 6
    for line, colour in zip(drawn, colours, strict=True):
        assert (line.get_linestyle() == "-") == (colour != TAIL_COLOURS["lower"])
    widths = sorted({round(float(line.get_linewidth()), 3) for line in drawn})
    assert widths == [0.25 + 4 * 0.5, 4.25]  # of a quarter, and of all


@pytest.mark.parametrize("n", [1, 9])
def test_names_of_any_length_stay_on_the_page(n: int) -> None:
    long = "a name that nobody would read to its end, however long the paper is"
    for graph in (
        circuit(n, title="blocks.11.mlp.hook_post:1234:lower, facet 3", label=long),
        circuit(n, title=f"class 3 ({long})", label="$5 & <b>\nnewline"),
    ):
        check_legible(circuit_figure(graph))
    said = texts(circuit_figure(circuit(title="blocks.11.mlp.hook_post:1234:lower")))
    assert "block 11 MLP 1234:lower" in said


def test_which_clusters_feed_which() -> None:
    graph = nx.DiGraph(title="which clusters feed which", run="runs/a")
    graph.add_node("0", label="cat", members=4, none=0.25, image=0.25, rest=-0.25)
    graph.add_node("1", label="", members=2, none=0.0, image=1.0, rest=0.0)
    graph.add_node("2", label="dog")  # nothing was traced of it
    graph.add_edge("1", "0", share=0.75)
    figure = cluster_figure(graph)
    said = texts(figure)
    assert {"cat 0", "0", "1", "units in no cluster", "rest"} <= set(said) and "dog 2" not in said
    squares = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_width() > 0]
    assert len(squares) == 5
    cell = max(p.get_width() for p in squares) / 0.94
    areas = sorted(round((p.get_width() / cell / 0.94) ** 2, 3) for p in squares)
    assert areas == [0.25, 0.25, 0.25, 0.75, 1.0]
    assert [to_hex(p.get_edgecolor()) for p in squares].count(TAIL_COLOURS["lower"]) == 1
