"""What of several runs can be compared: every measure that their tables share, as plain arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.analysis.effects import Cell, Summary
from polysem.sites import parse_site
from polysem.store.run import Run
from polysem.store.schema import UNITS

__all__ = ["COMPARED", "LEFT_OUT", "Measure", "measures", "tables_of"]

Floats = npt.NDArray[np.float64]

_HEADS = (
    "importance_zero", "importance_mean", "importance_resample", "logit_share", "suppression",
    "pattern_entropy", "pattern_distance", "class_share", "self_share", "neighbour_share",
    "previous_share", "fixed_share",
)  # fmt: skip

#: Columns that are compared, by table: those that mean the same in any network on these images.
COMPARED: dict[str, tuple[str, ...]] = {
    "images": ("accuracy", "loss"),
    "units": ("dead", "skewness", "kurtosis", "sparsity", "positive_share"),
    "polysemanticity": (
        "kurtosis", "hoyer", "treves_rolls", "gini", "tail_ratio", "near_max_share",
        "half_mass_share", "selectivity", "effective_classes", "best_class_auroc", "ms",
        "ms_above_chance", "excess_rank", "clarity", "redundancy", "two_centre",
    ),
    "superposition": ("participation_share", "weight_cosine"),
    "unit_facets": ("facets", "effective_facets", "silhouette", "excess", "stability"),
    "unit_circuits": ("facets", "effective_facets", "excess", "stability", "within", "across"),
    "edge_totals": ("completeness", "coverage"),
    "concepts": ("best_auroc", "count"),
    "labels": ("named", "score", "auroc", "rank_correlation"),
    "clusters": ("firmness",),
    "cluster_quality": ("clusters", "grouped_share", "stability", "silhouette"),
    "heads": _HEADS,
    "head_network": (),  # all statistics that it has
}  # fmt: skip

#: Tables that are not compared, and why.
LEFT_OUT = {
    "shown": "what images show, not what networks do",
    "facets": "one row a facet; unit_facets has them by unit",
    "circuits": "one row a circuit; unit_circuits has them by unit",
    "cluster_summary": "one row a group; groups of two networks do not correspond",
    "facet_clusters": "groups of two networks do not correspond",
    "facet_cluster_summary": "groups of two networks do not correspond",
    "facet_cluster_quality": "facets of two networks are not equally many",
    "facet_labels": "one row a facet; labels has units",
    "head_labels": "names of heads, ranked by two measures",
    "edges": "one row an edge; edge_totals has them by unit",
    "edge_check": "how far edges can be trusted, and by different methods",
    "cluster_edges": "groups of two networks do not correspond",
    "facet_cluster_edges": "groups of two networks do not correspond",
    "head_pairs": "pairs share heads and are no sample; head_network has what they come to",
    "heads_by_class": "one row a class; heads has all classes",
    "head_drop": "a curve; head_network has the area under it",
    "dictionary": "features of a dictionary beside units of one network",
    "smoothing": "one row an image and block",
}

#: Tables of one row a site, and of one row a network.
_OF_SITES, _OF_NETWORKS = ("superposition",), ("cluster_quality", "head_network")


@dataclass(frozen=True)
class Measure:
    """One number that several networks can be held against each other by.

    Attributes
    ----------
    table, name : str
        Where it comes from.
    site : str
        Sites of one kind, as a glob; empty for a whole network.
    layers : list of str
        The sites; one empty name for a whole network.
    summary : {"median", "mean"}
        How units become one number.
    meaning : str
    values : float array [run, layer]
        The number, or the summary of units or images.
    cells : list of list of Cell, optional
        Units by run and layer, where there are any.
    images : float array [run, image], optional
        By image, where it is that.
    """

    table: str
    name: str
    site: str
    layers: list[str]
    summary: Summary
    meaning: str
    values: Floats
    cells: list[list[Cell]] | None = None
    images: Floats | None = None


def tables_of(run: Run) -> set[str]:
    """Return the names of a run's tables, ``images`` among them."""
    return {file.stem for file in (run.path / "tables").glob("*.parquet")} | {"images"}


def measures(
    runs: Sequence[Run],
    tables: Sequence[str],
    sites: Sequence[str] | None,
    images: npt.NDArray[np.int64],
) -> Iterator[Measure]:
    """Yield every measure that all runs have in these tables, at these or all sites.

    `images` are the rows of the data that all runs saw.
    """
    for table in (name for name in COMPARED if name in tables):
        if table == "images":
            yield from _of_images(runs, images)
        elif table in _OF_NETWORKS:
            yield from _of_networks(runs, table)
        else:
            yield from _of_layers(runs, table, sites)


def _of_images(runs: Sequence[Run], images: npt.NDArray[np.int64]) -> Iterator[Measure]:
    meanings = {
        "accuracy": ("correct", "share of images whose prediction is the label"),
        "loss": ("loss", "cross-entropy, nats; of networks with another loss, that loss"),
    }
    for name, (column, meaning) in meanings.items():
        values: Floats = np.stack(
            [
                run.images.set_index("image").loc[images, column].to_numpy(dtype=np.float64)
                for run in runs
            ]
        )
        if np.isfinite(values).all():
            yield Measure(
                "images", name, "", [""], "mean", meaning, values.mean(1)[:, None], images=values
            )


def _of_networks(runs: Sequence[Run], table: str) -> Iterator[Measure]:
    opened = [run.table(table) for run in runs]
    if table == "head_network":
        series = [one.set_index("statistic")["value"] for one in opened]
        meanings = dict(opened[0][["statistic", "meaning"]].itertuples(index=False))
    else:
        series = [one.iloc[0].loc[list(COMPARED[table])] for one in opened]
        meanings = opened[0].attrs.get("columns", {})
    for name in series[0].index:
        if all(name in one.index for one in series):
            values = np.array([[float(one[name])] for one in series])
            if np.isfinite(values).all():
                yield Measure(table, str(name), "", [""], "mean", meanings.get(name, ""), values)


def _of_layers(runs: Sequence[Run], table: str, chosen: Sequence[str] | None) -> Iterator[Measure]:
    opened = [_at_sites(run.table(table), table) for run in runs]
    meanings = _meanings(runs[0], table)
    by_site = [{str(s): its for s, its in one.groupby("site", sort=False)} for one in opened]
    shared = [site for site in chosen or by_site[0] if all(site in one for one in by_site)]
    kinds: dict[str, list[str]] = {}
    for site in shared:
        kinds.setdefault(_kind(site), []).append(site)
    for kind, its in kinds.items():
        units = [[np.unique(one[site]["unit"], return_inverse=True) for site in its]
                 for one in by_site]  # fmt: skip
        for name in COMPARED[table]:
            if not all(name in one for one in opened):
                continue
            how: Summary = "median" if opened[0][name].dtype.kind == "f" else "mean"
            cells = [
                [
                    _cell(one[site][name].to_numpy(dtype=np.float64), of_unit, len(ids))
                    for site, (ids, of_unit) in zip(its, of_run, strict=True)
                ]
                for one, of_run in zip(by_site, units, strict=True)
            ]
            # a layer where a network has nothing cannot be compared
            full = [k for k in range(len(its)) if all(len(row[k].values) for row in cells)]
            if not full:
                continue
            cells = [[row[k] for k in full] for row in cells]
            values = np.array([[cell.summary(how) for cell in row] for row in cells])
            yield Measure(
                table, name, kind, [its[k] for k in full], how, meanings.get(name, ""), values,
                cells=None if table in _OF_SITES else cells,
            )  # fmt: skip


def _cell(values: Floats, unit: npt.NDArray[np.int64], n_units: int) -> Cell:
    # to seven digits: ranks of what differs beyond would be those of rounding
    rounded = values.astype(np.float32).astype(np.float64)
    there = ~np.isnan(rounded)
    return Cell(rounded[there], unit[there], n_units)


def _at_sites(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return rows of a table with a site and a unit each, without scores of dead units."""
    if name == "heads":
        sites = [f"blocks.{layer}.attn.hook_z" for layer in table["layer"]]
        table = table.assign(site=sites, unit=table["head"])
    if name == "labels":
        table = table[table["rank"] == 1]
    if name in _OF_SITES:
        table = table.assign(unit=0)
    if "dead" in table:
        scores = [c for c in table.columns if table[c].dtype.kind == "f"]
        table = table.assign(**{c: table[c].where(~table["dead"]) for c in scores})
    return table


def _meanings(run: Run, table: str) -> dict[str, str]:
    """Return what the columns of one of a run's tables hold, as far as it is known."""
    recorded = {name: variable.meaning for name, variable in UNITS.items()}
    recorded["dead"] = "share of units that gave the same value on all images"
    return recorded if table == "units" else dict(run.table(table).attrs.get("columns", {}))


def _kind(site: str) -> str:
    """Return the glob of all sites that are like this one but for their layer.

    >>> _kind("blocks.3.mlp.hook_post"), _kind("layer1.0.hook_post"), _kind("hook_pooled")
    ('blocks.*.mlp.hook_post', '*.hook_post', 'hook_pooled')
    """
    if site == "class":  # what edges into logits are of
        return site
    parsed = parse_site(site)
    if parsed.layer is not None:
        return f"blocks.*.{parsed.part}"
    return f"*.{parsed.part}" if parsed.part != site else site
