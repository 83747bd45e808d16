"""Circuits as graphs: with the names of units, for networkx, GraphML and JSON.

Nodes and edges are those that `polysem circuits` finds by running the network; here none is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd

from polysem.store.run import Run
from polysem.store.tables import save_text

__all__ = ["circuit_graph", "cluster_graph", "save_graph"]

#: What makes up a node's share.
_PARTS = ("kept", "others", "image", "rest")


def circuit_graph(
    run: Run, title: str, facts: Mapping[str, Any], nodes: pd.DataFrame, edges: pd.DataFrame
) -> nx.DiGraph:
    """Return the graph of a circuit.

    Parameters
    ----------
    run : Run
        Whose units are named, if its table ``labels`` names them.
    title : str
    facts : mapping
        Kept as attributes of the graph.
    nodes : DataFrame
        One row a face: node, site, unit, tail, share, kept, others, image, rest; the last is the
        target.
    edges : DataFrame
        source and target (numbers of nodes), share.

    Returns
    -------
    DiGraph
        Nodes are called ``site:unit:tail``, the target by its own name, and the image ``image``.
        Their attributes are kind (unit, target or image), site, unit, tail, label (the name of the
        unit; empty if it has none), share and its parts; of edges share (of the target's firing)
        and local (of what flows through the edge's own target).
    """
    names = _names(run)
    last = len(nodes) - 1
    graph = nx.DiGraph(title=title, run=str(run.path), **facts)
    ids: dict[int, str] = {}
    for row in nodes.to_dict("records"):
        target = row["node"] == last
        key = (row["site"], row["unit"], row["tail"])
        ids[row["node"]] = str(row["site"]) if target else ":".join(map(str, key))
        graph.add_node(
            ids[row["node"]],
            kind="target" if target else "unit",
            site=row["site"],
            unit=int(row["unit"]),
            tail=row["tail"],
            label=title if target else names.get(key, ""),
            share=float(row["share"]),
            **{part: float(row[part]) for part in _PARTS},
        )
    for row in edges.to_dict("records"):
        _join(graph, ids[row["source"]], ids[row["target"]], float(row["share"]))
    graph.add_node("image", kind="image", site="image", unit=-1, tail="", label="image")
    for row in nodes.to_dict("records"):
        if row["image"] != 0:
            _join(graph, "image", ids[row["node"]], float(row["image"]))
    return graph


def cluster_graph(run: Run, name: str = "cluster", *, least: float = 0.02) -> nx.DiGraph:
    """Return which clusters of units, or of facets, feed which.

    Parameters
    ----------
    run : Run
        With the table ``cluster_edges``, or ``facet_cluster_edges``.
    name : str, default "cluster"
        Or ``facet_cluster``.
    least : float, default 0.02
        Edges of a smaller share, by size, are left out.

    Returns
    -------
    DiGraph
        Nodes are numbers of clusters as words, with label (their commonest class, if known) and
        members; edges have share, of the mean firing of the cluster that is fed. Units in no
        cluster, the image and the rest are attributes of nodes: none, image, rest.

    Raises
    ------
    SpecError
        If the run has no such table.
    """
    table, summary = run.table(f"{name}_edges"), run.table(f"{name}_summary").set_index("cluster")
    graph = nx.DiGraph(title=f"which {name.replace('_', ' ')}s feed which", run=str(run.path))
    tops = zip(summary.index, summary["top_class"], summary["main_site"], strict=True)
    for cluster, top, site in tops:
        graph.add_node(str(cluster), label="" if pd.isna(top) else str(top), main_site=str(site))
    for row in table.to_dict("records"):
        node = str(row["cluster"])
        graph.nodes[node]["members"] = int(row["members"])
        if row["kind"] != "cluster":
            graph.nodes[node][row["kind"]] = float(row["share"])
        elif abs(row["share"]) >= least:
            graph.add_edge(str(row["source_cluster"]), node, share=float(row["share"]))
    return graph


def save_graph(graph: nx.DiGraph, stem: Path) -> list[Path]:
    """Write ``stem.json`` (node-link) and ``stem.graphml``, and return the files.

    Each appears when it is whole.

    Raises
    ------
    RunError
        If the place cannot be written.
    """
    words = json.dumps(nx.node_link_data(graph, edges="edges"), indent=1, ensure_ascii=False)
    plain = graph.copy()
    plain.graph = {k: ", ".join(v) if isinstance(v, list) else v for k, v in graph.graph.items()}
    texts = {".json": words, ".graphml": "\n".join(nx.generate_graphml(plain))}
    return [
        save_text(text + "\n", stem.with_name(stem.name + ending)) for ending, text in texts.items()
    ]


def _join(graph: nx.DiGraph, source: str, target: str, share: float) -> None:
    through = graph.nodes[target]["share"]
    local = share / through if through else float("nan")
    graph.add_edge(source, target, share=share, local=local)


def _names(run: Run) -> dict[tuple[str, int, str], str]:
    """Return the names of faces that have one."""
    if not run.has_table("labels"):
        return {}
    table = run.table("labels")
    named = table[(table["rank"] == 1) & table["named"]]
    keys = zip(named["site"], named["unit"], named["tail"], strict=True)
    return dict(zip(keys, named["concept"], strict=True))
