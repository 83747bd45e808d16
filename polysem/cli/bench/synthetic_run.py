"""A run as large as asked for, of units drawn at random: no network is needed to measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from polysem.store.additions import add_arrays, add_table
from polysem.store.run import Run
from polysem.store.schema import QUANTILES, UNITS, dataset
from polysem.store.writer import RunWriter

__all__ = ["synthetic_run"]

_GRID, _SAMPLE, _CLASSES, _WORDS = 14, 256, 100, 3000


def synthetic_run(
    out: Path, *, n_units: int, n_images: int, ranks: int = 9, n_sites: int = 12, seed: int = 0
) -> Run:
    """Write a run of units at sites of a ViT with all that a card of the atlas can show.

    Exemplars are drawn from all images alike, which real units never do: no image is shared by
    more units than chance has it, the hardest case for sheets of images.
    """
    rng = np.random.default_rng(seed)
    sites = [f"blocks.{layer}.mlp.hook_post" for layer in range(n_sites)]
    sizes = [len(part) for part in np.array_split(np.arange(n_units), n_sites)]
    described: dict[str, Any] = {}
    tables = []
    labels = rng.integers(_CLASSES, size=n_images)
    with RunWriter(out, overwrite=True) as writer:
        keys = [f"images/n{label:08d}/{i:08d}.JPEG" for i, label in enumerate(labels.tolist())]
        right = rng.uniform(size=n_images) < 0.8
        taken = np.where(right, labels, rng.integers(_CLASSES, size=n_images))
        writer.add_images({
            "image": np.arange(n_images), "key": keys, "label": labels, "prediction": taken,
            "loss": rng.gamma(1.0, size=n_images).astype("f4"), "correct": taken == labels,
        })  # fmt: skip
        for site, size in zip(sites, sizes, strict=True):
            units = _units(rng, size, n_images, ranks)
            writer.write_units(site, units)
            described[site] = {
                "dims": ["image", "token", "d_mlp"], "unit": "d_mlp", "n_units": size,
                "pools": ["max", "mean"], "tails": ["upper"], "signed": False,
                "grid": [_GRID, _GRID],
            }  # fmt: skip
            first = units.isel(pool=0)
            columns = ("mean", "kurtosis", "sparsity", "min", "max", "dead")
            table = pd.DataFrame({name: first[name].to_numpy() for name in columns})
            tables.append(table.assign(site=site, unit=range(size), pool="max"))
        writer.write_table("units", pd.concat(tables, ignore_index=True))
        writer.finish(_manifest(described, n_images, ranks))
    run = Run.open(out)
    _add_tables(run, rng, sites, sizes)
    shares = {
        site: _contributions(rng, size, ranks) for site, size in zip(sites, sizes, strict=True)
    }
    add_arrays(run, "contributions", shares)
    return run


def _units(rng: np.random.Generator, n_units: int, n_images: int, ranks: int) -> xr.Dataset:
    pools, shape = ["max", "mean"], (2, n_units)
    maps = rng.gamma(0.5, size=(1, n_units, ranks, _GRID, _GRID)).astype("f4")
    for axis in (3, 4):  # neighbours fire together
        maps = (maps + np.roll(maps, 1, axis) + np.roll(maps, -1, axis)) / 3
    values = np.sort(maps.max((3, 4)), axis=2)[:, :, ::-1]
    sample = rng.gamma(0.7, size=(2, _SAMPLE, n_units)).astype("f4")
    arrays: dict[str, Any] = {
        "count": n_images, "mean": sample.mean(1), "variance": sample.var(1),
        "skewness": rng.gamma(2.0, size=shape), "kurtosis": rng.gamma(2.0, 4.0, size=shape),
        "min": np.zeros(shape), "max": sample.max(1), "sparsity": rng.uniform(size=shape),
        "positive_share": rng.uniform(size=shape), "dead": rng.uniform(size=n_units) < 0.01,
        "quantile": np.quantile(sample, QUANTILES, axis=1).swapaxes(0, 1),
        "class_sum": rng.gamma(1.0, size=(2, _CLASSES, n_units)),
        "class_count": np.full(_CLASSES, n_images // _CLASSES),
        "sample_image": np.sort(rng.choice(n_images, _SAMPLE, replace=False)),
        "sample_value": sample, "top_value": values, "top_map": maps.astype("f2"),
        "top_image": rng.integers(n_images, size=(1, n_units, ranks)).astype("f8"),
        "n_exemplars": np.full((1, n_units), ranks),
    }  # fmt: skip
    return dataset(UNITS, arrays, {"pool": pools, "q": list(QUANTILES), "tail": ["upper"]})


def _contributions(rng: np.random.Generator, n_units: int, ranks: int) -> xr.Dataset:
    maps = rng.normal(0.3, 1.0, size=(1, n_units, ranks, _GRID, _GRID)).astype("f2")
    dims = ("tail", "unit", "rank", "y", "x")
    return xr.Dataset(
        {"contribution": xr.Variable(dims, maps, {"long_name": "contribution of each cell"})},
        coords={"tail": np.array(["upper"], dtype=object)},
    )


def _add_tables(run: Run, rng: np.random.Generator, sites: list[str], sizes: list[int]) -> None:
    n = sum(sizes)
    keys: dict[str, Any] = {
        "site": np.repeat(sites, sizes), "unit": np.concatenate([np.arange(s) for s in sizes]),
        "tail": "upper",
    }  # fmt: skip
    words = np.array([f"thing number {i}" for i in range(_WORDS)])
    classes = np.array(run.classes)
    scores = {
        name: rng.gamma(2.0, size=n)
        for name in ("excess_rank", "ms", "ms_above_chance", "selectivity", "effective_classes",
                     "best_class_auroc", "hoyer", "treves_rolls", "gini", "clarity", "redundancy")
    }  # fmt: skip
    _add(run, "polysemanticity", keys | scores | {"best_class": rng.choice(classes, n)})
    _add(run, "clusters", keys | {
        "cluster": rng.integers(-1, 60, size=n), "firmness": rng.uniform(size=n),
        "map_x": rng.normal(size=n), "map_y": rng.normal(size=n),
    })  # fmt: skip
    _add(run, "cluster_summary", {
        "cluster": np.arange(60), "faces": n // 60, "sites": len(sites), "main_site": sites[0],
        "tightness": rng.uniform(size=60), "top_class": rng.choice(classes, 60),
    })  # fmt: skip
    _add(run, "cluster_quality", {
        "feature": ["centroid"], "faces": [n], "min_size": [5], "clusters": [60],
        "grouped_share": [0.98], "stability": [0.7], "stability_low": [0.6], "silhouette": [0.2],
        "null_silhouette": [0.0], "p": [0.05],
    })  # fmt: skip
    top = 5
    ranked = {name: np.repeat(values, top) for name, values in keys.items() if name != "tail"}
    _add(run, "labels", ranked | {
        "tail": "upper", "rank": np.tile(np.arange(1, top + 1), n),
        "concept": rng.choice(words, n * top), "p_value": rng.uniform(size=n * top),
        "q_value": rng.uniform(size=n * top), "named": np.repeat(rng.uniform(size=n) < 0.5, top),
        "auroc": rng.uniform(size=n * top), "rank_correlation": rng.uniform(size=n * top),
    })  # fmt: skip
    parts = {name: np.repeat(values, 3) for name, values in keys.items() if name != "tail"}
    _add(run, "facets", parts | {
        "tail": "upper", "facet": np.tile(np.arange(3), n), "exemplars": 3,
        "share": np.tile([0.5, 0.3, 0.2], n), "best_image": 0,
        "ranks": [[0, 1, 2], [3, 4, 5], [6, 7, 8]] * n,
    })  # fmt: skip
    _add(run, "unit_facets", keys | {
        "facets": 3, "effective_facets": rng.uniform(1, 3, n), "excess": rng.gamma(2.0, size=n),
        "silhouette": rng.uniform(size=n), "stability": rng.uniform(size=n),
    })  # fmt: skip
    many = {name: np.repeat(values, 8) for name, values in keys.items() if name != "tail"}
    _add(run, "edges", many | {
        "tail": "upper", "source_site": rng.choice(np.array(sites), n * 8),
        "source_unit": rng.integers(min(sizes), size=n * 8), "source_tail": "upper",
        "rank": np.tile(np.arange(1, 9), n), "contribution": rng.normal(size=n * 8),
        "share": rng.normal(0, 0.1, size=n * 8),
    })  # fmt: skip


def _add(run: Run, name: str, columns: dict[str, Any]) -> None:
    table = pd.DataFrame(columns)
    add_table(run, name, table, meanings=dict.fromkeys(columns, "drawn at random"))


def _manifest(sites: dict[str, Any], n_images: int, ranks: int) -> dict[str, Any]:
    return {
        "status": "complete",
        "n_images": n_images,
        "model": {
            "spec": "synthetic", "name": "synthetic", "sha256": "0" * 64,
            "transform": {"size": [224, 224], "crop_pct": 1.0}, "classes": None, "info": {},
        },
        "data": {
            "name": "synthetic", "fingerprint": "0" * 64, "n_images": n_images, "labelled": True,
            "classes": [f"class {i}" for i in range(_CLASSES)],
        },
        "sites": sites,
        "options": {"top_k": ranks},
        "quantile_rank_error": 0.0,
        "skipped": [],
        "notes": ["Every number of this run is drawn at random."],
        "seconds": 0.0,
        "versions": {},
    }  # fmt: skip
