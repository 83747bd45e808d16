"""Who feeds whom: the strongest direct edges into every unit of a run, and into every class.

Each exemplar's activation where it peaks is shared out among the units of all earlier sites that
are traced, by direct paths (`cuts`), and averaged over the exemplars. Nodes are faces: a unit that
fires in both directions is two, as a target and as a source.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import NonFiniteError, RunError, SpecError
from polysem.explain.cuts import CLASS, Norms
from polysem.explain.edge_ablation import EDGE_CHECK, check_edges
from polysem.explain.feeding import CLUSTER_EDGES, groupings_of
from polysem.explain.run_exemplars import Exemplars, open_again, site_exemplars
from polysem.explain.tracing import Traced, class_exemplars, method_of, trace, traced_sites
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["EDGES", "EDGE_TOTALS", "edges"]

_TARGET = {
    "site": "where the target is; class for a logit, less what B-cos networks add to all logits",
    "unit": "index of the unit at its site, or of the class",
    "tail": "upper or lower: a unit that fires both ways has two faces",
}

#: Columns of ``tables/edges.parquet``, one row an edge from a face to a face.
EDGES = {
    **_TARGET,
    "source_site": "an earlier site",
    "source_unit": "index of the unit there",
    "source_tail": "the face of that unit: where its activation is above 0, or below",
    "rank": "1 for the largest contribution to the target, by size",
    "contribution": "mean over the target's exemplars of activation times gradient along direct "
    "paths (of B-cos networks a ⊙ W(a), exact), towards firing in the tail; below 0: inhibits",
    "share": "contribution over the target's mean firing; missing where that is not above 0",
    "spread": "standard deviation of the contribution over the exemplars",
    "ablation": "mean fall of the firing with the source face set to 0 and all other traced sites "
    "held; missing where not checked",
}

#: Columns of ``tables/edge_totals.parquet``, one row a target.
EDGE_TOTALS = {
    **_TARGET,
    "exemplars": "exemplars that are averaged; of a class, images that the model takes for it",
    "value": "mean firing where the exemplars peak",
    "units": "part of it that comes from units of the traced sites: the sum of all edges",
    "image": "part that comes from the image around all traced sites",
    "rest": "the remainder: constants that are added, and what gradients of networks that bend "
    "leave out",
    "kept": "sum of the edges in tables/edges.parquet",
    "completeness": "kept over value: share of the firing that the kept edges explain; missing "
    "where that is not above 0",
    "coverage": "sizes of the kept edges over the sizes of all, 0 to 1",
}


def edges(
    run: Run | str | Path,
    model: str | Path | LoadedModel,
    *,
    sites: str | Iterable[str] | None = None,
    data: str | ImageData | None = None,
    exemplars: int = 8,
    keep: int = 8,
    check: int = 200,
    norms: Norms = "free",
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Write the strongest edges into every face of every unit, and into every class, into a run.

    For each target, the sum of all edges, what comes from the image around them and the rest are
    its mean firing. For B-cos networks edges are exact and the rest is what is added as a
    constant. For others they are attributions, which the ablation of the strongest ones checks.

    Parameters
    ----------
    run : Run or path
    model : str, Path or LoadedModel
        The model that the run was probed with.
    sites : str or iterable of str, optional
        Globs over the model's sites that are traced, at least two of them or one and the classes.
        By default all neurons and channels that the run recorded. Targets are those that the run
        has exemplars of.
    data : str or ImageData, optional
        Where the images are, if they have moved.
    exemplars : int, default 8
        Of each face, at most.
    keep : int, default 8
        Edges into each face.
    check : int, default 200
        So many edges of the largest share are ablated.
    norms : {"free", "held"}, default "free"
        Of networks that are not B-cos: free ones say best what ablation does, held ones make the
        parts sum to the firing; see `cuts.prepared`.
    device : str, default "auto"
    progress : bool, default True

    Returns
    -------
    DataFrame
        Columns `EDGES`; also in ``tables/edges.parquet``, with ``edge_totals``, ``edge_check`` and,
        where the run has clusters, ``cluster_edges`` and ``facet_cluster_edges``.

    Raises
    ------
    RunError
        If the run was probed with other weights, or has no exemplars.
    DataError
        If the images are not those of the run.
    SpecError
        If no site matches, there is nothing to trace, or an option is out of range.
    NonFiniteError
        If a contribution is not finite.
    """
    for name, number in {"exemplars": exemplars, "keep": keep}.items():
        if number < 1:
            raise SpecError(f"{name} must be at least 1, not {number}")
    opened = run if isinstance(run, Run) else Run.open(run)
    loaded, source = open_again(opened, model, data, device)
    chosen = traced_sites(opened, loaded, sites)
    found = {s: site_exemplars(opened, s, exemplars) for s in chosen[1:] if s in opened.sites}
    found[CLASS] = class_exemplars(opened, exemplars)
    found = {site: each for site, each in found.items() if len(each.image)}
    if not found:
        raise RunError(
            f"{opened.path} has no exemplars at {', '.join(chosen[1:]) or 'any class'}, so there "
            "is nothing to trace; probe these sites too, or name other --sites"
        )
    groupings = groupings_of(opened)
    parts = []
    with progress_bar(unit="exemplars", show=progress) as move:
        done, total = 0, sum(len(each.image) for each in found.values())
        for site, each in found.items():
            sums = _Sums(each)
            takers = [sums.take, *(grouping.taker(each) for grouping in groupings)]
            for n in trace(loaded, source, chosen, site, each, takers, norms=norms):
                done += n
                move("trace", done, total)
            parts.append(sums.tables(keep))
    table = pd.concat([strongest for strongest, _ in parts], ignore_index=True)
    totals = pd.concat([rows for _, rows in parts], ignore_index=True)
    table["ablation"] = np.nan
    checked = check_edges(loaded, source, chosen, found, table, check, progress=progress)
    checked.insert(1, "method", method_of(loaded, norms))
    add_table(opened, "edges", table[list(EDGES)], meanings=EDGES)
    add_table(opened, "edge_totals", totals[list(EDGE_TOTALS)], meanings=EDGE_TOTALS)
    add_table(opened, "edge_check", checked, meanings=EDGE_CHECK)
    for grouping in groupings:
        add_table(opened, f"{grouping.name}_edges", grouping.table(), meanings=CLUSTER_EDGES)
    return table[list(EDGES)]


class _Sums:
    """Sums over exemplars for the faces of one site, filled as they come."""

    def __init__(self, each: Exemplars) -> None:
        self.each = each
        self.n_targets = each.shape[0] * each.shape[1]
        self.count, self.value = np.zeros(self.n_targets), np.zeros(self.n_targets)
        self.image = np.zeros(self.n_targets)
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.tails: dict[str, int] = {}

    def take(self, some: Traced) -> None:
        """Add some exemplars."""
        row, image, target = some.places(self.each.shape)
        np.add.at(self.count, target, 1)
        np.add.at(self.value, target, some.value[row, image])
        np.add.at(self.image, target, some.image.detach().cpu().numpy()[row, image])
        for site, part in some.parts.items():
            faces = part[row, image].flatten(1)  # [exemplar, face]
            if site not in self.sums:
                self.tails[site] = part.shape[2]
                self.sums[site] = faces.new_zeros(self.n_targets, faces.shape[1])
                self.squares[site] = torch.zeros_like(self.sums[site])
            index = torch.from_numpy(target).to(faces.device)
            self.sums[site].index_add_(0, index, faces)
            self.squares[site].index_add_(0, index, faces.square())

    def tables(self, keep: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the strongest edges, and the totals, of the targets that have exemplars.

        Raises
        ------
        NonFiniteError
            If a contribution is not finite.
        """
        there = np.flatnonzero(self.count)
        n = self.count[there]
        sums = torch.cat(list(self.sums.values()), 1)[there].double().cpu().numpy() / n[:, None]
        squares = torch.cat(list(self.squares.values()), 1)[there].double().cpu().numpy()
        if not np.isfinite(sums).all():
            raise NonFiniteError(
                f"what feeds {self.each.site.name} holds NaN or infinite values: the weights are "
                "at fault; nothing was written"
            )
        keep = min(keep, sums.shape[1])
        size = np.abs(sums)
        best = np.argpartition(-size, keep - 1, axis=1)[:, :keep]
        order = np.argsort(-np.take_along_axis(size, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        kept = np.take_along_axis(sums, best, 1)
        square = np.take_along_axis(squares, best, 1) / n[:, None]
        value, image = self.value[there] / n, self.image[there] / n
        firing = np.where(value > 0, value, np.nan)
        keys = self._keys(there)
        sources = self._sources().iloc[best.ravel()].reset_index(drop=True)
        strongest = keys.loc[keys.index.repeat(keep)].reset_index(drop=True).join(sources)
        strongest["rank"] = np.tile(np.arange(1, keep + 1), len(there))
        strongest["contribution"] = kept.ravel()
        strongest["share"] = (kept / firing[:, None]).ravel()
        strongest["spread"] = np.sqrt((square - kept**2).clip(min=0)).ravel()
        with np.errstate(invalid="ignore"):
            coverage = np.abs(kept).sum(1) / size.sum(1)
        totals = keys.assign(
            exemplars=n.astype(np.int64),
            value=value,
            units=sums.sum(1),
            image=image,
            rest=value - image - sums.sum(1),
            kept=kept.sum(1),
            completeness=kept.sum(1) / firing,
            coverage=coverage,
        )
        return strongest[strongest["contribution"] != 0], totals

    def _keys(self, targets: npt.NDArray[np.int64]) -> pd.DataFrame:
        tail, unit = np.divmod(targets, self.each.shape[1])
        tails = np.array(self.each.tails, dtype=object)[tail]
        return pd.DataFrame({"site": self.each.site.name, "unit": unit, "tail": tails})

    def _sources(self) -> pd.DataFrame:
        """Return the faces that sums are over, in their order."""
        found = []
        for site, sums in self.sums.items():
            unit = np.arange(sums.shape[1] // self.tails[site])
            for tail in ("upper", "lower")[: self.tails[site]]:
                found.append(
                    pd.DataFrame({"source_site": site, "source_unit": unit, "source_tail": tail})
                )
        return pd.concat(found, ignore_index=True)
