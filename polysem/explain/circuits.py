"""The circuit of one unit, class or cluster: through which units its firing flows.

The firing is handed back from site to site. What a face passes on towards the target, its
activation times the target's gradient, is shared out among the faces of earlier sites by direct
paths (`cuts`), so that of a B-cos network what flows into a face is what flows out of it. Only the
strongest faces of each site and edges between them are kept, and what these leave out is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import NonFiniteError, RunError, SpecError
from polysem.explain.circuit_targets import CircuitTarget, circuit_targets
from polysem.explain.cuts import CLASS, Norms
from polysem.explain.flow import Face, Flow, Into
from polysem.explain.run_exemplars import Exemplars, open_again
from polysem.explain.target import sites_of
from polysem.explain.tracing import method_of, traced_sites
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar
from polysem.store.run import Run

__all__ = ["Circuit", "circuits"]

_TAILS = ("upper", "lower")


@dataclass(frozen=True)
class Circuit:
    """What feeds a target, as a sparse graph. All shares are of the target's mean firing.

    Attributes
    ----------
    name, title : str
        For files, and for people.
    facts : dict
        method (bcos, attribution, or that with norms held), exemplars, value (mean firing), sites
        (traced), and what makes up the firing: kept (edges of the graph: its completeness), others
        (units that are left out), image (around all sites), rest (constants, and what gradients
        leave out): shares that sum to 1.
    nodes : DataFrame
        One row a face: node, site, unit, tail, share (what flows through it), and how much of that
        comes from kept, others, image and rest. The last is the target itself, of share 1.
    edges : DataFrame
        One row an edge: source, target (numbers of nodes), share; below 0 it inhibits.
    """

    name: str
    title: str
    facts: dict[str, Any]
    nodes: pd.DataFrame
    edges: pd.DataFrame


def circuits(
    run: Run | str | Path,
    model: str | Path | LoadedModel,
    *,
    unit: str | None = None,
    of_class: str | int | None = None,
    cluster: int | None = None,
    facet: int | None = None,
    sites: str | Iterable[str] | None = None,
    data: str | ImageData | None = None,
    exemplars: int = 16,
    nodes: int = 6,
    keep: int = 3,
    norms: Norms = "held",
    device: str = "auto",
    progress: bool = True,
) -> list[Circuit]:
    """Return the circuits of a unit, a class or a cluster of units.

    Parameters
    ----------
    run : Run or path
    model : str, Path or LoadedModel
        The model that the run was probed with.
    unit : str, optional
        ``site:unit``, of which each face has a circuit, or ``site:unit:lower``.
    of_class : str or int, optional
        Name or number of a class: its logit, on images that the model takes for it.
    cluster : int, optional
        Number of a group of units that ``polysem clusters`` found; its members count alike.
    facet : int, optional
        With `unit`: only exemplars of this facet, which ``polysem facets`` found.
    sites : str or iterable of str, optional
        Globs over the model's sites that are traced; by default all neurons and channels that the
        run recorded.
    data : str or ImageData, optional
        Where the images are, if they have moved.
    exemplars : int, default 16
        Of each face or class, at most.
    nodes : int, default 6
        Faces that are kept of each site.
    keep : int, default 3
        Edges that are kept into each of these; into the target all are.
    norms : {"held", "free"}, default "held"
        Of networks that are not B-cos: held ones make what flows sum up, free ones say best what
        ablation of a single edge does; see `cuts.prepared`.
    device : str, default "auto"
    progress : bool, default True

    Returns
    -------
    list of Circuit
        Two for a unit that fires in both directions, else one.

    Raises
    ------
    RunError
        If the run was probed with other weights, or has no exemplars of the target.
    DataError
        If the images are not those of the run.
    SpecError
        If there is no such target, no site before it, or an option is out of range.
    NonFiniteError
        If what flows is not finite.
    """
    for name, number in {"exemplars": exemplars, "nodes": nodes, "keep": keep}.items():
        if number < 1:
            raise SpecError(f"{name} must be at least 1, not {number}")
    opened = run if isinstance(run, Run) else Run.open(run)
    loaded, source = open_again(opened, model, data, device)
    targets = circuit_targets(
        opened, loaded, unit=unit, of_class=of_class, cluster=cluster, facet=facet,
        exemplars=exemplars,
    )  # fmt: skip
    chosen = traced_sites(opened, loaded, sites)
    order = [*sites_of(loaded.model), CLASS]
    last = max(order.index(site) for target in targets for site in target.exemplars)
    before = [site for site in chosen if order.index(site) < last]
    if not before:
        raise SpecError(
            f"no traced site lies before {order[last]}: {', '.join(chosen)} come at it or after "
            "it; name earlier --sites"
        )
    found = []
    with progress_bar(unit="exemplars", show=progress) as move:
        for target in targets:
            flow = Flow(loaded, source, before, order, norms)
            found.append(_circuit(flow, target, nodes, keep, move))
    return found


def _circuit(
    flow: Flow,
    target: CircuitTarget,
    n_nodes: int,
    n_edges: int,
    move: Callable[[str, int, int], None],
) -> Circuit:
    """Return the circuit of a target.

    Raises
    ------
    RunError
        If the target does not fire.
    NonFiniteError
        If what flows is not finite.
    """
    values = {site: flow.values(site, each) for site, each in target.exemplars.items()}
    weights = _weights(target.exemplars, values)
    if not any(weight.any() for weight in weights.values()):
        raise RunError(
            f"{target.title} is not above 0 where its exemplars peak, so there is no firing to "
            "share out"
        )
    total = 2 * sum(len(each.image) for each in target.exemplars.values())
    done = 0
    end = Into()
    through: dict[str, Tensor] = {}
    for site, each in target.exemplars.items():
        for passed, ones, weight in flow.batches(site, each, weights[site]):
            inner = flow.back(passed, site, ones, weight, end)
            for s, passing in flow.through(passed, inner).items():
                some = torch.einsum("i,itu->tu", weight, passing).double().cpu()
                through[s] = through[s] + some if s in through else some
            done += len(weight)
            move(target.title, done, total)
    if not all(bool(passed_on.isfinite().all()) for passed_on in through.values()):
        raise NonFiniteError(
            f"what feeds {target.title} holds NaN or infinite values: the weights are at fault"
        )
    faces = _strongest(through, n_nodes)
    into = {face: Into() for face in faces}
    for site, each in target.exemplars.items():
        for passed, ones, weight in flow.batches(site, each, weights[site]):
            inner = flow.back(passed, site, ones, weight, None)
            for s in inner:
                flow.expand(passed, s, inner[s], [f for f in faces if f[0] == s], into, weight)
            done += len(weight)
            move(target.title, done, total)
    nodes, edges = _graph(target, flow.sites, faces, through, into, end, n_edges)
    last = nodes.iloc[-1]
    facts = {
        "method": method_of(flow.loaded, flow.norms),
        "exemplars": sum(len(each.image) for each in target.exemplars.values()),
        "value": float(np.mean(np.concatenate(list(values.values())))),
        "sites": list(flow.sites),
        **{what: float(last[what]) for what in ("kept", "others", "image", "rest")},
    }
    return Circuit(target.name, target.title, facts, nodes, edges)


def _weights(
    exemplars: Mapping[str, Exemplars], values: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return weights [row] by site under which values sum to 1, each face counting alike.

    Faces that do not fire on average have none.
    """
    found, n_faces = {}, 0
    for site, each in exemplars.items():
        face = each.at[0] * each.shape[1] + each.at[1]
        firing = np.bincount(face, values[site])[face]
        found[site] = np.where(firing > 0, 1 / np.where(firing > 0, firing, 1), 0)
        n_faces += len(np.unique(face[firing > 0]))
    return {site: weight / max(n_faces, 1) for site, weight in found.items()}


def _strongest(through: Mapping[str, Tensor], n: int) -> list[Face]:
    """Return the faces of each site through which most flows, by size."""
    found: list[Face] = []
    for site, flow in through.items():
        size = flow.abs().flatten()
        for index in size.topk(min(n, len(size))).indices.tolist():
            tail, unit = divmod(index, flow.shape[1])
            if size[index] > 0:
                found.append((site, _TAILS[tail], unit))
    return found


def _graph(
    target: CircuitTarget,
    sites: Sequence[str],
    faces: Sequence[Face],
    through: Mapping[str, Tensor],
    into: Mapping[Face, Into],
    end: Into,
    n_edges: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return nodes, in network order and the target last, and the edges between them.

    All edges into the target, and the strongest `n_edges` into each other node.
    """
    ordered = sorted(faces, key=lambda face: sites.index(face[0]))  # strongest first, within a site
    number = {face: k for k, face in enumerate(ordered)}
    flows = [*((number[face], into[face]) for face in ordered), (len(ordered), end)]
    edges = pd.DataFrame(
        [
            (number[face], node, float(flow.units[face[0]][_TAILS.index(face[1]), face[2]]))
            for node, flow in flows
            for face in ordered
            if face[0] in flow.units
        ],
        columns=["source", "target", "share"],
    ).astype({"source": np.int64, "target": np.int64, "share": np.float64})
    edges = edges[edges["share"] != 0]
    rank = edges["share"].abs().groupby(edges["target"]).rank(ascending=False, method="first")
    edges = edges[(rank <= n_edges) | (edges["target"] == len(ordered))].reset_index(drop=True)
    kept = edges.groupby("target")["share"].sum().reindex(range(len(flows)), fill_value=0.0)
    rows = []
    for node, flow in flows:
        whole = node == len(ordered)
        site, tail, unit = (target.name, "", -1) if whole else ordered[node]
        share = 1.0 if whole else float(through[site][_TAILS.index(tail), unit])
        units = sum(float(part.sum()) for part in flow.units.values())
        rest = share - units - flow.image
        rows.append(
            (node, site, unit, tail, share, kept[node], units - kept[node], flow.image, rest)
        )
    columns = ["node", "site", "unit", "tail", "share", "kept", "others", "image", "rest"]
    return pd.DataFrame(rows, columns=columns), edges
