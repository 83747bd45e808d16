"""Graphs of circuits: names, shares, and the files that other programs read."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pandas as pd
import pytest
from drawn_run import PlainSource, random_activations, write_run

from polysem.analysis.circuit_graph import circuit_graph, cluster_graph, save_graph
from polysem.errors import RunError, SpecError
from polysem.store.additions import add_table
from polysem.store.run import Run

SITES = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
ACCOUNTS = ["kept", "others", "image", "rest"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    source = PlainSource("photos", [f"image {i}" for i in range(4)])
    return write_run(tmp_path / "run", source, random_activations(4))


def circuit() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two faces that feed a third, which feeds the target."""
    columns = ["node", "site", "unit", "tail", "share", *ACCOUNTS]
    rows = [
        (0, SITES[0], 3, "upper", 0.6, 0.0, 0.0, 0.6, 0.0),
        (1, SITES[0], 3, "lower", -0.1, 0.0, 0.0, -0.1, 0.0),
        (2, SITES[1], 0, "upper", 0.8, 0.5, 0.3, 0.0, 0.0),
        (3, "class_1", -1, "", 1.0, 0.8, 0.1, 0.0, 0.1),
    ]
    edges = pd.DataFrame(
        [(0, 2, 0.6), (1, 2, -0.1), (2, 3, 0.8)], columns=["source", "target", "share"]
    )
    return pd.DataFrame(rows, columns=columns), edges


def graph_of(run: Run) -> nx.DiGraph:
    facts = {"method": "bcos", "exemplars": 4, "value": 2.0, "sites": SITES, "kept": 0.8}
    return circuit_graph(run, "class 1 (<b>)", facts, *circuit())


def test_nodes_have_names_and_edges_shares(run: Run) -> None:
    columns = ["site", "unit", "tail", "rank", "concept", "named"]
    labels = [
        (SITES[0], 3, "upper", 1, "stripes", True),
        (SITES[0], 3, "upper", 2, "zebra", True),
        (SITES[1], 0, "upper", 1, "nothing", False),
    ]
    table = pd.DataFrame(labels, columns=columns)
    add_table(run, "labels", table, meanings=dict.fromkeys(columns, "said elsewhere"))
    graph = graph_of(run)
    names = [f"{SITES[0]}:3:upper", f"{SITES[0]}:3:lower", f"{SITES[1]}:0:upper"]
    assert list(graph) == [*names, "class_1", "image"]
    assert [graph.nodes[n]["label"] for n in graph] == ["stripes", "", "", "class 1 (<b>)", "image"]
    assert [graph.nodes[n]["kind"] for n in graph] == ["unit"] * 3 + ["target", "image"]
    assert graph[names[0]][names[2]] == {"share": 0.6, "local": pytest.approx(0.75)}
    assert graph["image"][names[1]] == {"share": -0.1, "local": pytest.approx(1.0)}
    assert not graph.has_edge("image", "class_1")


def test_files_give_the_graph_back(run: Run, tmp_path: Path) -> None:
    graph = graph_of(run)
    written, xml = save_graph(graph, tmp_path / "new" / "blocks.1.mlp.hook_post_0_upper")
    assert [written.name, xml.name] == [
        "blocks.1.mlp.hook_post_0_upper.json", "blocks.1.mlp.hook_post_0_upper.graphml",
    ]  # fmt: skip
    text = json.loads(written.read_text(encoding="utf-8"))
    again = nx.node_link_graph(text, edges="edges")
    assert nx.utils.graphs_equal(again, graph)
    other = nx.read_graphml(xml)
    assert dict(other.nodes(data=True)) == dict(graph.nodes(data=True))
    assert set(other.edges) == set(graph.edges) and other.graph["sites"] == ", ".join(SITES)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        save_graph(graph, tmp_path / "file" / "x")


def test_clusters_that_feed_clusters(run: Run) -> None:
    columns = ["cluster", "kind", "source_cluster", "share", "members"]
    rows = [
        (0, "image", -1, 0.9, 7), (0, "cluster", 0, 0.01, 7), (0, "cluster", 1, -0.2, 7),
        (0, "none", -1, 0.2, 7), (0, "rest", -1, 0.09, 7),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    add_table(run, "cluster_edges", table, meanings=dict.fromkeys(columns, "said elsewhere"))
    columns = ["cluster", "main_site", "top_class"]
    summary = pd.DataFrame([(0, SITES[1], "cat"), (1, SITES[0], None)], columns=columns)
    add_table(run, "cluster_summary", summary, meanings=dict.fromkeys(columns, "said elsewhere"))
    graph = cluster_graph(run)
    assert list(graph.edges(data="share")) == [("1", "0", -0.2)]
    assert graph.nodes["0"] == {
        "label": "cat", "main_site": SITES[1], "members": 7, "image": 0.9, "none": 0.2,
        "rest": 0.09,
    }  # fmt: skip
    assert graph.nodes["1"]["label"] == "" and "members" not in graph.nodes["1"]
    assert cluster_graph(run, least=0.005).number_of_edges() == 2
    with pytest.raises(SpecError, match="no table 'facet_cluster_edges'"):
        cluster_graph(run, "facet_cluster")
