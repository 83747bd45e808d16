"""Small runs for tests: activations are given or drawn at random, statistics are plain NumPy.

No model and no torch: what is written here is an independent statement of what a run folder holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from polysem.sites import parse_site
from polysem.store.run import Run
from polysem.store.schema import QUANTILES, UNITS, dataset
from polysem.store.writer import RunWriter

RANKS = 8


class Source(Protocol):
    """What a run says of its data."""

    name: str
    keys: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    fingerprint: str


@dataclass
class PlainSource:
    """Data without pixels."""

    name: str
    keys: Sequence[str]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    fingerprint: str = "0" * 64


@dataclass
class Activations:
    """What a network would have shown at one site: float [image, unit] or [image, unit, y, x]."""

    values: np.ndarray
    signed: bool = True


def random_activations(n_images: int, *, seed: int = 0) -> dict[str, Activations]:
    """Return three sites of a small transformer; neuron 2 is dead, neuron 3 fires thrice."""
    rng = np.random.default_rng(seed)
    neurons = rng.normal(size=(n_images, 5, 4, 4)) * rng.gamma(1.0, size=(n_images, 5, 1, 1))
    neurons[:, 2] = 0.25
    rectified = neurons.clip(min=0)
    rectified[3:, 3] = 0
    return {
        "blocks.0.mlp.hook_post": Activations(neurons),
        "blocks.0.attn.hook_z": Activations(rng.gamma(3.0, size=(n_images, 3, 4, 4)), signed=False),
        "blocks.1.mlp.hook_post": Activations(rectified, signed=False),
        "hook_pooled": Activations(rng.normal(size=(n_images, 7))),
    }


def cnn_activations(n_images: int, *, seed: int = 0) -> dict[str, Activations]:
    """Return two sites of a small CNN, with maps that are not square."""
    rng = np.random.default_rng(seed)
    return {
        "layer1.0.hook_post": Activations(
            rng.normal(size=(n_images, 4, 3, 5)).clip(min=0), signed=False
        ),
        "layer2.0.hook_post": Activations(rng.normal(size=(n_images, 6, 2, 3))),
    }


def unit_statistics(
    site: str,
    activations: Activations,
    images: np.ndarray,
    *,
    ranks: int = RANKS,
    sample: int = 1024,
    labels: np.ndarray | None = None,
    n_classes: int = 0,
) -> xr.Dataset:
    """Return the statistics of a site; `images` are the indices of the rows in the data."""
    values = activations.values.astype(np.float32)
    both = activations.signed and parse_site(site).unit_dim != "head"
    maps = values if values.ndim == 4 else None
    pools = pooled_activations(site, activations)
    pooled = np.stack(list(pools.values())).astype(np.float64)  # [pool, image, unit]
    mean, deviation = pooled.mean(1), pooled.std(1)
    z = (pooled - mean[:, None]) / np.where(deviation == 0, np.nan, deviation)[:, None]
    root, norm = np.sqrt(len(images)), np.sqrt((pooled**2).sum(1))
    with np.errstate(invalid="ignore"):
        sparsity = (root - np.abs(pooled).sum(1) / norm) / (root - 1)
    kept = pooled[:, :sample]
    arrays: dict[str, Any] = {
        "count": len(images),
        "mean": mean,
        "variance": deviation**2,
        "skewness": (z**3).mean(1),
        "kurtosis": (z**4).mean(1) - 3,
        "min": pooled.min(1),
        "max": pooled.max(1),
        "sparsity": sparsity,
        "positive_share": (pooled > 0).mean(1),
        "quantile": np.quantile(kept, QUANTILES, axis=1, method="inverted_cdf").swapaxes(0, 1),
        "dead": (deviation == 0).all(0),
        "sample_image": images[:sample],
        "sample_value": kept.astype(np.float32),
    }
    if labels is not None:
        hits = np.eye(n_classes)[labels]  # [image, class]
        arrays["class_sum"] = np.einsum("piu,ic->pcu", pooled, hits)
        arrays["class_count"] = hits.sum(0).astype(np.int64)
    tails = ("upper", "lower") if both else ("upper",)
    found = [
        _exemplars(
            pools.get("min" if tail == "lower" else "max", pools.get("value")),
            maps, images, ranks, lower=tail == "lower", only_firing=not both,
        )
        for tail in tails
    ]  # fmt: skip
    arrays |= {name: np.stack([tail[name] for tail in found]) for name in found[0]}
    coords = {"pool": list(pools), "q": list(QUANTILES), "tail": list(tails)}
    return dataset(UNITS, arrays, coords)


def pooled_activations(site: str, activations: Activations) -> dict[str, np.ndarray]:
    """Return what each pool makes of a site, float32 [image, unit]."""
    values = activations.values.astype(np.float32)
    if values.ndim == 2:
        return {"value": values}
    pools = {"max": values.max((2, 3)), "mean": values.mean((2, 3))}
    both = activations.signed and parse_site(site).unit_dim != "head"
    return pools | ({"min": values.min((2, 3))} if both else {})


def _exemplars(
    values: np.ndarray,
    maps: np.ndarray | None,
    images: np.ndarray,
    ranks: int,
    *,
    lower: bool,
    only_firing: bool,
) -> dict[str, np.ndarray]:
    n_units = values.shape[1]
    found = {
        "top_value": np.full((n_units, ranks), np.nan),
        "top_image": np.full((n_units, ranks), np.nan),
        "n_exemplars": np.zeros(n_units, dtype=np.int64),
    }
    if maps is not None:
        shape = (n_units, ranks, *maps.shape[2:])
        found["top_map"] = np.full(shape, np.nan, dtype=np.float16)
        found["top_y"], found["top_x"] = np.full((2, n_units, ranks), np.nan)
    for unit in range(n_units):
        order = np.argsort(values[:, unit] * (1 if lower else -1), kind="stable")
        order = [row for row in order if not only_firing or values[row, unit] > 0][:ranks]
        found["n_exemplars"][unit] = len(order)
        for rank, row in enumerate(order):
            found["top_value"][unit, rank] = values[row, unit]
            found["top_image"][unit, rank] = images[row]
            if maps is not None:
                one = maps[row, unit]
                found["top_map"][unit, rank] = one
                peak = one.argmin() if lower else one.argmax()
                found["top_y"][unit, rank], found["top_x"][unit, rank] = np.unravel_index(
                    peak, one.shape
                )
    return found


def write_run(
    out: Path,
    source: Source,
    activations: Mapping[str, Activations],
    *,
    size: tuple[int, int] = (64, 64),
    crop_pct: float = 1.0,
    skipped: Sequence[int] = (),
    predictions: np.ndarray | None = None,
    outputs: Sequence[str] | None = None,
    status: str = "complete",
    notes: Sequence[str] = (),
    ranks: int = RANKS,
    patterns: bool = False,
    pooled: bool = False,
    model: str = "bcos_vit_test",
    sha256: str = "ab" * 32,
    overwrite: bool = False,
) -> Run:
    """Write a run of `source` without its skipped images; activations have a row for each kept."""
    kept = np.array([i for i in range(len(source.keys)) if i not in set(skipped)])
    labels = None if source.labels is None else source.labels[kept]
    n_classes = 0 if labels is None else len(source.classes or ()) or int(source.labels.max()) + 1
    none = [None] * len(kept)
    comparable = labels is not None and predictions is not None and outputs is None
    heads = [n for n in activations if n.endswith("attn.hook_z")]
    described, tables = {}, []
    rng = np.random.default_rng(1)
    with RunWriter(out, overwrite=overwrite) as writer:
        writer.add_images(
            {
                "image": kept,
                "key": [source.keys[i] for i in kept],
                "label": none if labels is None else labels,
                "prediction": none if predictions is None else predictions,
                "loss": rng.gamma(1.0, size=len(kept)).astype("f4") if comparable else none,
                "correct": predictions == labels if comparable else none,
            }
        )
        for name, shown in activations.items():
            units = unit_statistics(
                name, shown, kept, ranks=ranks, labels=labels, n_classes=n_classes
            )
            if pooled:
                pools = pooled_activations(name, shown)
                writer.add_pooled(name, np.stack(list(pools.values()), axis=1))
            writer.write_units(name, units)
            described[name] = {
                "dims": list(parse_site(name).dims),
                "unit": parse_site(name).unit_dim,
                "n_units": units.sizes["unit"],
                "pools": [str(p) for p in units["pool"].values],
                "tails": [str(t) for t in units["tail"].values],
                "signed": shown.signed,
                "grid": list(shown.values.shape[2:]) or None,
            }
            first = units.isel(pool=0)
            columns = ["mean", "kurtosis", "sparsity", "min", "max", "dead"]
            table = pd.DataFrame({column: first[column].to_numpy() for column in columns})
            table.insert(0, "site", name)
            table.insert(1, "unit", range(len(table)))
            tables.append(table)
        writer.write_table("units", pd.concat(tables, ignore_index=True))
        if heads:
            norms = np.stack([activations[name].values.mean((2, 3)) for name in heads], axis=1)
            writer.add_heads("output_norm", norms)
            if patterns:
                writer.add_heads("pattern_entropy", rng.uniform(0, 4, norms.shape))
                writer.add_heads("pattern_distance", rng.uniform(0, 4, norms.shape))
            writer.write_heads(xr.Dataset(coords={"layer": [parse_site(n).layer for n in heads]}))
        writer.finish(
            {
                "status": status,
                "n_images": len(kept),
                "model": {
                    "spec": f"{model}.safetensors",
                    "name": model,
                    "sha256": sha256,
                    "transform": {"size": list(size), "crop_pct": crop_pct},
                    "classes": None if outputs is None else list(outputs),
                    "info": {},
                },
                "data": {
                    "name": source.name,
                    "fingerprint": source.fingerprint,
                    "n_images": len(source.keys),
                    "labelled": labels is not None,
                    "classes": None if source.classes is None else list(source.classes),
                },
                "sites": described,
                "options": {"top_k": ranks, "pooled": pooled},
                "quantile_rank_error": 0.0,
                "skipped": [{"key": source.keys[i], "reason": "truncated"} for i in skipped],
                "notes": list(notes),
                "seconds": 1.5,
                "versions": {"polysem": "0.1.0"},
            }
        )
    return Run.open(out)
