"""Edges held against the truth: a source is set to 0, and what its target does about it.

The source face alone changes. All other traced sites are held at what they were, so that only
direct paths carry the change, as `cuts` attributes it. Every layer on these paths answers as it
does: norms, attention patterns and the dynamic weights of B-cos layers change with the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from polysem.data.dataset import ImageData
from polysem.explain.cuts import CLASS, cut, prepared, signed_sites
from polysem.explain.forward import forward
from polysem.explain.run_exemplars import Exemplars, pointed
from polysem.explain.tracing import shown
from polysem.models.bcos import logit_bias
from polysem.models.load import LoadedModel
from polysem.progress import progress_bar
from polysem.sites import parse_site

__all__ = ["EDGE_CHECK", "check_edges"]

#: The columns of ``tables/edge_check.parquet``: all edges that were checked, and by target site.
EDGE_CHECK = {
    "site": "where the targets are; all for all edges",
    "method": "bcos (exact), attribution (activation times gradient) or attribution, norms held",
    "edges": "edges of the largest share that were ablated",
    "rank_correlation": "Spearman's correlation of contribution and fall, both over the target's "
    "mean firing; missing with fewer than three edges",
    "low": "lower end of its 95 % interval: edges resampled",
    "high": "upper end",
    "size_correlation": "the same of their sizes, which does not profit from telling signs apart",
    "same_sign": "share of these edges whose ablation changes the firing in the direction that the "
    "contribution says",
    "median_ratio": "median of fall over contribution; 1 if ablation takes away what was "
    "contributed",
}

_SIGNS = {"upper": 1, "lower": -1}

#: Images of one pass, at most.
_ROWS = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class _Ablation:
    """One exemplar of one edge: which image, what is set to 0, and what is read."""

    edge: int
    image: int
    source: str
    unit: int
    tail: str
    target: str
    row: int


def check_edges(
    loaded: LoadedModel,
    source: ImageData,
    sites: Sequence[str],
    found: Mapping[str, Exemplars],
    table: pd.DataFrame,
    n_edges: int,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Ablate the edges of the largest share, and say how well contributions rank what happens.

    Parameters
    ----------
    loaded : LoadedModel
    source : ImageData
    sites : sequence of str
        That are traced.
    found : mapping of str to Exemplars
        By site of the targets.
    table : DataFrame
        Of edges; its column ``ablation`` is filled.
    n_edges : int
        At most.
    progress : bool, default True

    Returns
    -------
    DataFrame
        Columns `EDGE_CHECK`, without the method.
    """
    chosen = table["share"].abs().nlargest(n_edges).index
    todo = [each for edge in chosen for each in _exemplars_of(edge, table.loc[edge], found)]
    todo.sort(key=lambda each: each.image)  # images are read and run clean once
    fall = np.zeros(len(todo))
    size = _ROWS.get(next(loaded.model.parameters()).device.type, 64)
    with progress_bar(unit="ablations", show=progress) as move:
        for start in range(0, len(todo), size):
            some = todo[start : start + size]
            fall[start : start + size] = _falls(loaded, source, sites, found, some)
            move("ablate", start + len(some), len(todo))
    falls = pd.Series(fall).groupby([each.edge for each in todo]).mean()
    table.loc[falls.index, "ablation"] = falls
    checked = table.loc[chosen]
    by_site = [(site, checked[checked["site"] == site]) for site in found]
    rows = [_agreement(site, some) for site, some in [("all", checked), *by_site]]
    columns = [name for name in EDGE_CHECK if name != "method"]
    return pd.DataFrame(rows, columns=columns)


def _exemplars_of(edge: int, row: pd.Series, found: Mapping[str, Exemplars]) -> list[_Ablation]:
    each = found[row["site"]]
    tail = each.tails.index(row["tail"])
    mine = np.flatnonzero((each.at[0] == tail) & (each.at[1] == row["unit"]))
    return [
        _Ablation(
            edge, int(each.image[k]), row["source_site"], int(row["source_unit"]),
            row["source_tail"], row["site"], int(k),
        )
        for k in mine
    ]  # fmt: skip


def _falls(
    loaded: LoadedModel,
    source: ImageData,
    sites: Sequence[str],
    found: Mapping[str, Exemplars],
    some: Sequence[_Ablation],
) -> npt.NDArray[np.float64]:
    """Return by how much each target's firing falls [row]."""
    images = sorted({each.image for each in some})
    of = [images.index(each.image) for each in some]
    read = sorted({each.target for each in some} - {*sites, CLASS})
    with prepared(loaded.model, bcos=False), torch.no_grad():
        x = shown(loaded, source, images)
        clean = cut(loaded.model, x, sites, read=read)
        after = _with_sources_at_zero(
            loaded.model, x[of], {s: clean.constants[s][of] for s in sites}, some, read
        )
        fall = np.zeros(len(some))
        for i, each in enumerate(some):
            before = clean.arrived[each.target][of[i]][None]
            now = after[each.target][i][None]
            at = [np.array([each.row])]
            pointing = pointed(found[each.target], at, before, clean.n_prefix_tokens, 1)
            _, value, ones = next(pointing)
            fall[i] = float(value[0, 0]) - float((ones[0] * now).sum())
    return fall


def _with_sources_at_zero(
    model: nn.Module,
    x: Tensor,
    constants: Mapping[str, Tensor],
    some: Sequence[_Ablation],
    read: Sequence[str],
) -> dict[str, Tensor]:
    """Return what arrives at each site, each row with its source at 0 and all else held."""
    arrived: dict[str, Tensor] = {}
    signed = signed_sites(model, list(constants))

    def hold(site: str, activation: Tensor) -> Tensor:
        arrived[site] = activation
        held = constants[site].detach().clone()
        rows = [row for row, each in enumerate(some) if each.source == site]
        if rows:
            units = held.movedim(1 + _unit_axis(site), 1)  # a view: [row, unit, …]
            its = [some[row].unit for row in rows]
            one = units[rows, its]
            sign = one.new_tensor([_SIGNS[some[row].tail] for row in rows])
            off = one * sign.view(-1, *[1] * (one.ndim - 1)) > 0 if signed[site] else one == one
            units[rows, its] = one.masked_fill(off, 0)
        return held

    points: dict[str, Callable[[Tensor], Tensor | None]] = {s: partial(hold, s) for s in constants}
    for site in read:
        points[site] = partial(arrived.__setitem__, site)
    logits, _, _ = forward(model, x, points)
    arrived[CLASS] = logits - logit_bias(model)
    return arrived


def _unit_axis(site: str) -> int:
    """Return where the units are among the axes after the image."""
    return parse_site(site).dims.index(parse_site(site).unit_dim) - 1


def _agreement(site: str, checked: pd.DataFrame) -> tuple[object, ...]:
    """Return a row of `EDGE_CHECK`."""
    firing = (checked["contribution"] / checked["share"]).to_numpy()
    said, seen = checked["share"].to_numpy(), checked["ablation"].to_numpy() / firing
    low = high = rank = size = same = ratio = np.nan
    if len(said):
        same, ratio = (np.sign(said) == np.sign(seen)).mean(), np.median(seen / said)
    if len(said) > 2:
        rank, size = _spearman(said, seen), _spearman(np.abs(said), np.abs(seen))
        draws = np.random.default_rng(0).integers(len(said), size=(1000, len(said)))
        again = [_spearman(said[draw], seen[draw]) for draw in draws]
        low, high = np.nanquantile(again, [0.025, 0.975]) if np.isfinite(rank) else (low, high)
    return site, len(said), rank, low, high, size, same, ratio


def _spearman(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return Spearman's correlation; NaN where either does not vary."""
    ranks = rankdata(one), rankdata(other)
    if min(np.ptp(each) for each in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
