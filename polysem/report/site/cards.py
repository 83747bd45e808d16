"""What the card of each unit shows, in files of a few units each that pages load as needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from polysem.report.site.exemplar_images import exemplar_images
from polysem.report.site.faces import KEYS
from polysem.report.site.packed import firing_levels, packed_rows, signed_levels
from polysem.report.site.parts import Shown, rounded, write_data
from polysem.report.site.sprites import Sprites
from polysem.store.run import Run
from polysem.store.schema import ranking_pool

__all__ = ["SHARD", "cells_of", "write_cards"]

#: Faces whose cards are in one file.
SHARD = 40

_BINS = 24

#: Classes of a profile: all where they are few, else those with the highest means.
_ALL_CLASSES, _HIGHEST = 12, 8

#: Units on either side that a card names.
_NEIGHBOURS = 6

_Face = tuple[str, int, str]


def write_cards(shown: Shown, faces: pd.DataFrame, sprites: Sprites) -> int:
    """Write the cards of all faces, in the order of the table, and return in how many files.

    A card holds ``i`` slots of the exemplars, ``v`` their activations, ``q`` their keys, ``m``
    and ``c`` packed maps of firing and of contribution, ``h`` the histogram [low, high, *counts],
    ``k`` class means [[class, mean]], ``f`` facets, ``u`` and ``d`` the units before and after it
    and ``n`` candidates for its name; what there is not is left out.
    """
    told = _told(shown.run)
    n_shards = 0
    waiting: list[dict[str, Any]] = []
    start = 0
    for site, tails in shown.run.manifest["sites"].items():
        of_tail = [_site_cards(shown, site, tail, sprites) for tail in tails["tails"]]
        here = faces.iloc[start : start + len(of_tail) * len(of_tail[0])]
        start += len(here)
        keys = zip(here["site"], here["unit"].tolist(), here["tail"], strict=True)
        row = {tail: k for k, tail in enumerate(tails["tails"])}
        for face in keys:
            card = of_tail[row[face[2]]][face[1]]
            waiting.append(card | told.get(face, {}))
        while len(waiting) >= SHARD:
            write_data(shown, f"units-{n_shards:04d}", waiting[:SHARD])
            waiting, n_shards = waiting[SHARD:], n_shards + 1
        shown.on_step("cards", start, len(faces))
    if waiting:
        write_data(shown, f"units-{n_shards:04d}", waiting)
        n_shards += 1
    return n_shards


def cells_of(run: Run, site: str) -> list[int] | None:
    """Return rows and columns of a site's contribution maps; None where there are none."""
    if not (run.path / "contributions.zarr" / site).is_dir():
        return None
    sizes = run.contributions(site).sizes
    return [int(sizes["y"]), int(sizes["x"])]


def _site_cards(shown: Shown, site: str, tail: str, sprites: Sprites) -> list[dict[str, Any]]:
    run, most = shown.run, shown.n_exemplars
    units = run.units(site).drop_vars("pooled", errors="ignore")
    pool = ranking_pool(run.manifest["sites"][site]["pools"], tail)
    top = units.sel(tail=tail).isel(rank=slice(most))
    images = exemplar_images(run, site, most)[list(units["tail"].to_numpy()).index(tail)]
    alive = ~units["dead"].to_numpy()
    count = np.where(alive, (images >= 0).sum(1), 0)
    slots = sprites.slots[np.maximum(images, 0)].tolist() if len(sprites.slots) else []
    values = rounded(top["top_value"].to_numpy(), 3)
    keys = _keys(run, images)
    columns: dict[str, list[Any]] = {"h": _histograms(units, pool), "k": _profiles(units, pool)}
    ranks = np.full(len(count), images.shape[1])
    if "top_map" in top:
        base_pool = "mean" if "mean" in units["pool"].to_numpy() else pool
        base = units["mean"].sel(pool=base_pool).to_numpy()
        levels = firing_levels(top["top_map"].to_numpy(), base, lower=tail == "lower")
        columns["m"] = packed_rows(levels)
    if cells_of(run, site) is not None:
        explained = run.contributions(site)
        if tail in explained["tail"].to_numpy():
            maps = explained["contribution"].sel(tail=tail).isel(rank=slice(most)).to_numpy()
            columns["c"] = packed_rows(signed_levels(maps))
            ranks = np.full(len(count), maps.shape[1])
    cards = []
    for unit, n in enumerate(count.tolist()):
        card: dict[str, Any] = {"i": slots[unit][:n], "v": values[unit][:n], "q": keys[unit][:n]}
        if alive[unit]:
            card |= {name: column[unit] for name, column in columns.items() if column}
            if "c" in columns and ranks[unit] < n:
                card["r"] = int(ranks[unit])  # maps of contribution may be of fewer exemplars
        cards.append(card)
    return cards


def _keys(run: Run, images: npt.NDArray[np.int64]) -> list[list[str]]:
    known = run.images["image"].to_numpy()
    at = np.searchsorted(known, np.maximum(images, 0)).clip(max=max(0, len(known) - 1))
    names: npt.NDArray[np.object_] = run.images["key"].astype(str).to_numpy(dtype=object)
    found: list[list[str]] = names[at].tolist()
    return found


def _histograms(units: xr.Dataset, pool: str) -> list[list[float]]:
    """Return [low, high, *counts] of the sampled images, a row a unit."""
    values = units["sample_value"].sel(pool=pool).transpose("sample", "unit").to_numpy()
    low, high = values.min(0), values.max(0)
    width = np.where(high > low, high - low, 1.0)
    bins = np.minimum(((values - low) / width * _BINS).astype(np.int64), _BINS - 1)
    n_units = values.shape[1]
    flat = (bins + np.arange(n_units) * _BINS).reshape(-1)
    counts = np.bincount(flat, minlength=n_units * _BINS).reshape(n_units, _BINS)
    ends = rounded(np.stack([low, high], axis=1), 3)
    return [end + row for end, row in zip(ends, counts.tolist(), strict=True)]


def _profiles(units: xr.Dataset, pool: str) -> list[list[list[Any]]]:
    """Return [[class, mean], …] a unit: all classes in order, or the highest of many."""
    if "class_sum" not in units:
        return []
    counted = units["class_count"].to_numpy().astype(float)
    seen = np.flatnonzero(counted)
    total = units["class_sum"].sel(pool=pool).transpose("class", "unit").to_numpy()
    means = (total[seen] / counted[seen, None]).T  # [unit, class]
    if len(seen) <= _ALL_CLASSES:
        order = np.broadcast_to(np.arange(len(seen)), means.shape)
    else:
        order = np.argsort(-means, axis=1, kind="stable")[:, :_HIGHEST]
    chosen = rounded(np.take_along_axis(means, order, axis=1), 3)
    classes = seen[order].tolist()
    return [
        [list(pair) for pair in zip(*row, strict=True)] for row in zip(classes, chosen, strict=True)
    ]


def _told(run: Run) -> Mapping[_Face, dict[str, Any]]:
    """Return what tables with several rows a face say of it: facets, neighbours, names."""
    found: dict[_Face, dict[str, Any]] = defaultdict(dict)
    for row in _rows(run, "labels"):
        said = [row["concept"], *rounded([row["p_value"], row["auroc"]], 3)]
        found[_face(row)].setdefault("n", []).append(said)
    names = {
        (*_face(row), row["facet"]): row["concept"]
        for row in _rows(run, "facet_labels")
        if row["rank"] == 1 and row["named"]
    }
    for row in _rows(run, "facets"):
        name = names.get((*_face(row), row["facet"]))
        (share,) = rounded([row["share"]], 3)
        ranks = [int(rank) for rank in row["ranks"]]
        found[_face(row)].setdefault("f", []).append([share, row["exemplars"], name, ranks])
    if run.has_table("edges"):
        _add_neighbours(found, run.table("edges"))
    return found


def _add_neighbours(found: dict[_Face, dict[str, Any]], edges: pd.DataFrame) -> None:
    """Add the strongest edges into (``u``) and out of (``d``) each face: [site, unit, tail, share].

    Edges whose share is not known are left out.
    """
    edges = edges[edges["share"].notna()]
    source = ["source_site", "source_unit", "source_tail"]
    strength = edges["share"].abs()
    for name, near, far in (("u", KEYS, source), ("d", source, KEYS)):
        ordered = edges.loc[strength.sort_values(ascending=False, kind="stable").index]
        best = ordered.groupby(near, sort=False).head(_NEIGHBOURS)
        columns = [best[column].tolist() for column in (*near, *far)]
        shares = rounded(best["share"].to_numpy(), 3)
        for *face, site, unit, tail, share in zip(*columns, shares, strict=True):
            found[(face[0], face[1], face[2])].setdefault(name, []).append(
                [site, unit, tail, share]
            )


def _rows(run: Run, name: str) -> list[dict[Any, Any]]:
    return run.table(name).to_dict("records") if run.has_table(name) else []


def _face(row: Mapping[Any, Any]) -> _Face:
    return row["site"], row["unit"], row["tail"]
