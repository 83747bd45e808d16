"""Which groups feed which: edges summed over clusters of units, or of their facets.

Groups come from tables that `polysem clusters` keeps. Of facets, a source is that facet of a unit
whose exemplars look most like the image; a target is the facet that the exemplar is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from polysem.explain.run_exemplars import Exemplars
from polysem.explain.tracing import Traced
from polysem.store.run import Run

__all__ = ["CLUSTER_EDGES", "Grouping", "groupings_of"]

#: Columns of ``tables/cluster_edges.parquet`` and ``facet_cluster_edges.parquet``: one row a
#: cluster and what feeds it.
CLUSTER_EDGES = {
    "cluster": "the cluster that is fed",
    "kind": "cluster; none: units in no cluster; image: around all traced sites; rest: constants, "
    "and what gradients of networks that bend leave out",
    "source_cluster": "the cluster that feeds; -1 for other kinds",
    "share": "of the firing of the cluster's members, their mean; those of a cluster sum to 1",
    "members": "faces of units, or facets, of the cluster whose firing was traced",
}

_Ints = npt.NDArray[np.int64]


@dataclass
class Grouping:
    """Groups of faces or facets, with what fed each member, filled as it comes.

    Attributes
    ----------
    name : str
        Of the groups: ``cluster`` or ``facet_cluster``.
    group : int64 array [member]
        The group of each face or facet; -1 for none.
    member : mapping of str to int64 array [tail, unit, rank]
        By site: which member an exemplar of the run belongs to; -1 if none.
    sources : callable
        From a site and images to the group of each face there, int64 [image or 1, tail, unit];
        the number of groups stands for none. None for a site without groups.
    """

    name: str
    group: _Ints
    member: Mapping[str, _Ints]
    sources: Callable[[str, Sequence[int]], _Ints | None]
    sums: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        # of each member: firing, image, each group, no group
        self.sums = np.zeros((len(self.group), self.n_groups + 3))

    @property
    def n_groups(self) -> int:
        """Groups, without that of none."""
        return int(self.group.max(initial=-1)) + 1

    def taker(self, each: Exemplars) -> Callable[[Traced], None]:
        """Return what adds exemplars of a site."""
        members = self.member.get(each.site.name)

        def take(some: Traced) -> None:
            if members is None:
                return
            row, image, _ = some.places(each.shape)
            tail, unit, rank = (np.concatenate([at[axis] for at in some.at]) for axis in range(3))
            mine = members[tail, unit, rank]
            fed = np.zeros((len(row), self.sums.shape[1]))
            fed[:, 0] = some.value[row, image]
            fed[:, 1] = some.image.detach().cpu().numpy()[row, image]
            for site, part in some.parts.items():
                faces = part[row, image].flatten(1)
                group = np.full((len(some.images), *part.shape[2:]), self.n_groups)
                if (known := self.sources(site, some.images)) is not None:
                    group[:] = known[:, : part.shape[2]]
                index = torch.from_numpy(group[image].reshape(len(row), -1)).to(faces.device)
                total = faces.new_zeros(len(row), self.n_groups + 1).scatter_add_(1, index, faces)
                fed[:, 2:] += total.cpu().numpy()
            np.add.at(self.sums, mine[mine >= 0], fed[mine >= 0])

        return take

    def table(self) -> pd.DataFrame:
        """Return what feeds each group, columns `CLUSTER_EDGES`."""
        firing = self.sums[:, 0] > 0
        shares = self.sums[firing, 1:] / self.sums[firing, :1]
        group = self.group[firing]
        kinds = ["image", *["cluster"] * self.n_groups, "none", "rest"]
        sources = [-1, *range(self.n_groups), -1, -1]
        parts = []
        for cluster in range(self.n_groups):
            mine = shares[group == cluster]
            if len(mine):
                mean = mine.mean(0)
                share = [*mean, 1 - mean.sum()]
                found = {"cluster": cluster, "kind": kinds, "source_cluster": sources}
                parts.append(pd.DataFrame({**found, "share": share, "members": len(mine)}))
        if not parts:
            return pd.DataFrame(columns=list(CLUSTER_EDGES))
        return pd.concat(parts, ignore_index=True)


def groupings_of(run: Run) -> list[Grouping]:
    """Return the clusters of units and of facets that a run has."""
    tables = run.path / "tables"
    found = []
    if (tables / "clusters.parquet").is_file():
        found.append(_of_units(run))
    if (tables / "facet_clusters.parquet").is_file():
        found.append(_of_facets(run))
    return [grouping for grouping in found if grouping.n_groups]


def _of_units(run: Run) -> Grouping:
    table = run.table("clusters")
    table = table[table["cluster"] >= 0].reset_index(drop=True)
    n_groups = int(table["cluster"].max()) + 1 if len(table) else 0
    member: dict[str, _Ints] = {}
    group: dict[str, _Ints] = {}
    for site, rows in _by_site(run, table):
        _, n_units, n_ranks = shape = _shape(run, site)
        at = (_tails(rows), rows["unit"].to_numpy())
        member[site] = np.full(shape, -1)
        member[site][at] = np.broadcast_to(rows.index.to_numpy()[:, None], (len(rows), n_ranks))
        group[site] = np.full((1, 2, n_units), n_groups)
        group[site][0][at] = rows["cluster"]
    return Grouping(
        "cluster", table["cluster"].to_numpy(np.int64), member, lambda site, _: group.get(site)
    )


def _of_facets(run: Run) -> Grouping:
    keys = ["site", "unit", "tail", "facet"]
    table = run.table("facet_clusters").merge(run.table("facets")[[*keys, "ranks"]], on=keys)
    directions = run.facet_directions.to_numpy()
    n_groups = int(table["cluster"].max()) + 1 if len(table) else 0
    embeddings = run.embeddings.to_numpy()
    looks = embeddings - embeddings.mean(0)  # directions are from the common mean, too
    index = {int(image): row for row, image in enumerate(run.images["image"])}
    group = table["cluster"].to_numpy(np.int64)
    member: dict[str, _Ints] = {}
    facets: dict[str, _Ints] = {}
    for site, rows in _by_site(run, table):
        shape = _shape(run, site)
        tail, unit = _tails(rows), rows["unit"].to_numpy()
        member[site] = np.full(shape, -1)
        for t, u, ranks, row in zip(tail, unit, rows["ranks"], rows.index, strict=True):
            member[site][t, u, ranks] = row if group[row] >= 0 else -1
        facets[site] = np.full((*shape[:2], int(rows["facet"].max()) + 1), -1)
        facets[site][tail, unit, rows["facet"].to_numpy()] = rows.index

    def sources(site: str, images: Sequence[int]) -> _Ints | None:
        if site not in facets:
            return None
        shown = looks[[index[image] for image in images]]
        its = facets[site]  # [tail, unit, facet]
        likeness = (shown @ directions.T)[:, its]
        likeness[:, its < 0] = -np.inf
        best = np.take_along_axis(its[None], likeness.argmax(-1)[..., None], -1)[..., 0]
        found = np.where(best >= 0, group[best], n_groups)
        return np.where(found >= 0, found, n_groups)

    return Grouping("facet_cluster", group, member, sources)


def _by_site(run: Run, table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(site, rows) for site in run.sites if len(rows := table[table["site"] == site])]


def _shape(run: Run, site: str) -> tuple[int, int, int]:
    """Return sizes of tail, unit and rank; both tails, though units may have one."""
    sizes = run.units(site).sizes
    return 2, sizes["unit"], sizes["rank"]


def _tails(rows: pd.DataFrame) -> _Ints:
    return np.where(rows["tail"] == "upper", 0, 1)
