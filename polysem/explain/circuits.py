"""The circuit of one unit, class or cluster: through which units its firing flows.

The firing is handed back from site to site. What a face passes on towards the target, its
activation times the target's gradient, is shared out among the faces of earlier sites by direct
paths (`cuts`), so that of a B-cos network what flows into a face is what flows out of it. Only the
strongest faces of each site and edges between them are kept, and what these leave out is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import NonFiniteError, RunError, SpecError
from polysem.explain.circuit_targets import CircuitTarget, circuit_targets
from polysem.explain.cuts import (
    CLASS,
    IMAGE,
    Cut,
    Norms,
    by_face,
    cut,
    gradients,
    parts,
    prepared,
    signed_sites,
)
from polysem.explain.run_exemplars import Exemplars, is_bcos, open_again, pointed
from polysem.explain.target import sites_of
from polysem.explain.tracing import method_of, shown, traced_sites
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar
from polysem.sites import parse_site
from polysem.store.run import Run

__all__ = ["Circuit", "circuits"]

_TAILS = ("upper", "lower")

#: A node: site, tail and unit.
Face: TypeAlias = tuple[str, str, int]

#: Exemplars of one pass, and of one backward pass over several faces.
_AT_A_TIME = {"cpu": (16, 64), "cuda": (128, 1024)}


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
            flow = _Flow(loaded, source, before, order, norms)
            found.append(flow.circuit(target, nodes, keep, move))
    return found


@dataclass
class _Into:
    """What flows into one node, its sums over exemplars: of each face by site, and the image."""

    units: dict[str, Tensor] = field(default_factory=dict)
    image: float = 0.0

    def add(self, units: Mapping[str, Tensor], image: Tensor, weight: Tensor) -> None:
        """Add some exemplars: [image, tail, unit] by site and [image], weighted [image]."""
        for site, part in units.items():
            some = torch.einsum("i,itu->tu", weight, part).double().cpu()
            self.units[site] = self.units[site] + some if site in self.units else some
        self.image += float((weight * image).sum())


class _Flow:
    """How the firing of one target flows back through a network that is cut."""

    def __init__(
        self,
        loaded: LoadedModel,
        source: ImageData,
        sites: Sequence[str],
        order: Sequence[str],
        norms: Norms,
    ) -> None:
        self.loaded, self.source, self.sites, self.order = loaded, source, sites, order
        self.signed = signed_sites(loaded.model, sites)
        self.norms, self.bcos = norms, is_bcos(loaded)
        like = next(loaded.model.parameters())
        self.n_images, self.n_rows = _AT_A_TIME.get(like.device.type, (16, 64))

    def circuit(
        self,
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
        values = {site: self._values(site, each) for site, each in target.exemplars.items()}
        weights = _weights(target.exemplars, values)
        if not any(weight.any() for weight in weights.values()):
            raise RunError(
                f"{target.title} is not above 0 where its exemplars peak, so there is no firing to "
                "share out"
            )
        total = 2 * sum(len(each.image) for each in target.exemplars.values())
        done = 0
        end = _Into()
        through: dict[str, Tensor] = {}
        for site, each in target.exemplars.items():
            for passed, ones, weight in self._batches(site, each, weights[site]):
                inner = self._back(passed, site, ones, weight, end)
                for s, flow in self._through(passed, inner).items():
                    some = torch.einsum("i,itu->tu", weight, flow).double().cpu()
                    through[s] = through[s] + some if s in through else some
                done += len(weight)
                move(target.title, done, total)
        if not all(bool(flow.isfinite().all()) for flow in through.values()):
            raise NonFiniteError(
                f"what feeds {target.title} holds NaN or infinite values: the weights are at fault"
            )
        faces = _strongest(through, n_nodes)
        into = {face: _Into() for face in faces}
        for site, each in target.exemplars.items():
            for passed, ones, weight in self._batches(site, each, weights[site]):
                inner = self._back(passed, site, ones, weight, None)
                for s in inner:
                    self._expand(passed, s, inner[s], [f for f in faces if f[0] == s], into, weight)
                done += len(weight)
                move(target.title, done, total)
        nodes, edges = _graph(target, self.sites, faces, through, into, end, n_edges)
        last = nodes.iloc[-1]
        facts = {
            "method": method_of(self.loaded, self.norms),
            "exemplars": sum(len(each.image) for each in target.exemplars.values()),
            "value": float(np.mean(np.concatenate(list(values.values())))),
            "sites": list(self.sites),
            **{what: float(last[what]) for what in ("kept", "others", "image", "rest")},
        }
        return Circuit(target.name, target.title, facts, nodes, edges)

    def _values(self, site: str, each: Exemplars) -> npt.NDArray[np.float64]:
        """Return how strongly each exemplar fires [row]."""
        found = np.zeros(len(each.image))
        at = 0
        for passed, ones, weight in self._batches(site, each, np.ones(len(each.image))):
            value = (passed.arrived[site].detach() * ones[0]).flatten(1).sum(1)
            found[at : at + len(weight)] = value.cpu().numpy()
            at += len(weight)
        return found

    def _batches(
        self, site: str, each: Exemplars, weights: npt.NDArray[np.float64]
    ) -> Iterator[tuple[Cut, Tensor, Tensor]]:
        """Yield networks cut, what points at the exemplars [1, image, …], and weights [image]."""
        read = [] if site in (*self.sites, CLASS) else [site]
        for start in range(0, len(each.image), self.n_images):
            rows = np.arange(start, min(start + self.n_images, len(each.image)))
            with prepared(self.loaded.model, bcos=self.bcos, norms=self.norms):
                x = shown(self.loaded, self.source, [int(i) for i in each.image[rows]])
                passed = cut(self.loaded.model, x, self.sites, read=read)
                arrived, mine = passed.arrived[site], [rows[k : k + 1] for k in range(len(rows))]
                pointing = pointed(each, mine, arrived, passed.n_prefix_tokens, len(rows))
                _, _, ones = next(pointing)
                yield passed, ones, torch.from_numpy(weights[rows]).to(x)

    def _back(
        self, passed: Cut, site: str, ones: Tensor, weight: Tensor, end: _Into | None
    ) -> dict[str, Tensor]:
        """Return the target's gradient at each site before it, the last first; count its edges."""
        found = gradients(passed, site, ones)
        if end is not None:
            units, image = parts(passed, found, self.signed)
            end.add({s: part[0] for s, part in units.items()}, image[0], weight)
        inner = {s: found[s][0] for s in reversed(passed.before(site)) if s != IMAGE}
        for s in inner:
            for start, more in gradients(passed, s, inner[s][None]).items():
                if start != IMAGE:
                    inner[start] = inner[start] + more[0]
        return inner

    def _through(self, passed: Cut, inner: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each face passes on towards the target [image, tail, unit], by site."""
        return {
            s: by_face(
                (gradient * passed.constants[s].detach())[None], passed.constants[s].detach(), s,
                signed=self.signed[s],
            )[0]
            for s, gradient in inner.items()
        }  # fmt: skip

    def _expand(
        self,
        passed: Cut,
        site: str,
        gradient: Tensor,
        faces: Sequence[Face],
        into: Mapping[Face, _Into],
        weight: Tensor,
    ) -> None:
        """Share out what some faces of a site pass on, among those before."""
        axis = parse_site(site).dims.index(parse_site(site).unit_dim)
        size = max(1, self.n_rows // len(weight))
        for start in range(0, len(faces), size):
            some = faces[start : start + size]
            asked = gradient.new_zeros(len(some), *gradient.shape)
            for k, (_, tail, unit) in enumerate(some):
                one = gradient.select(axis, unit)
                if self.signed[site]:
                    above = passed.constants[site].detach().select(axis, unit) > 0
                    one = torch.where(above if tail == "upper" else ~above, one, 0)
                asked[k].select(axis, unit).copy_(one)
            units, image = parts(passed, gradients(passed, site, asked), self.signed)
            for k, face in enumerate(some):
                into[face].add({s: part[k] for s, part in units.items()}, image[k], weight)


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
    into: Mapping[Face, _Into],
    end: _Into,
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
