"""What the manifest and the unit table say about a probe; plain values, ready for JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

import pandas as pd
import xarray as xr

from polysem.data.dataset import ImageData
from polysem.errors import SpecError
from polysem.models.load import LoadedModel
from polysem.sites import DEFAULT_SITES, parse_site, select_sites

__all__ = [
    "choose_sites", "class_mismatch", "describe_data", "describe_model", "describe_versions",
    "shown_table", "unit_table",
]  # fmt: skip

_PACKAGES = ("polysem", "torch", "timm", "transformer-lens", "numpy", "xarray", "zarr")


def choose_sites(available: list[str], wanted: str | Iterable[str] | None) -> list[str]:
    """Return the sites to record: the wanted globs, or the defaults that the model has.

    Raises
    ------
    SpecError
        If a glob matches nothing, or only sites whose activations are not units.
    """
    recordable = [n for n in available if "query" not in parse_site(n).dims]
    if wanted is None:
        return [n for n in recordable if any(fnmatchcase(n, glob) for glob in DEFAULT_SITES)]
    globs = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    chosen = [n for n in select_sites(available, globs) if n in recordable]
    if not chosen:
        raise SpecError(
            f"{', '.join(globs)}: patterns are not units; use --patterns to measure how widely "
            "and how far heads look"
        )
    return chosen


def class_mismatch(loaded: LoadedModel, source: ImageData, n_logits: int) -> str | None:
    """Return why the model's predictions cannot be held against the labels, or None if they can."""
    if source.labels is None:
        return "the data has no labels: loss and correct are left empty"
    if loaded.classes is not None and source.classes is not None:
        if loaded.classes == source.classes:
            return None
        return (
            f"the model knows {len(loaded.classes)} classes ({', '.join(loaded.classes[:3])}, …), "
            f"the data has {len(source.classes)} others ({', '.join(source.classes[:3])}, …): "
            "loss and correct are left empty"
        )
    n_classes = len(source.classes) if source.classes else int(source.labels.max()) + 1
    if n_classes == n_logits:
        return None
    return (
        f"the model has {n_logits} outputs, the data {n_classes} classes: "
        "loss and correct are left empty"
    )


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """Return what identifies the model."""
    return {
        "spec": loaded.spec,
        "name": loaded.name,
        "sha256": loaded.sha256,
        "transform": loaded.transform.to_dict(),
        "classes": None if loaded.classes is None else list(loaded.classes),
        "info": loaded.info,
    }


def describe_data(source: ImageData) -> dict[str, Any]:
    """Return what identifies the data."""
    return {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "n_images": len(source),
        "labelled": source.labels is not None,
        "classes": None if source.classes is None else list(source.classes),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of what the statistics depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def shown_table(source: ImageData, images: list[int]) -> pd.DataFrame:
    """Return which concepts the probed images show: image, and a column for each concept."""
    shown = source.concept_matrix()[images]
    table = pd.DataFrame(shown, columns=list(source.concepts or ()))
    table.insert(0, "image", images)
    return table


def unit_table(site: str, units: xr.Dataset) -> pd.DataFrame:
    """Return one row a unit of the statistics of its first pool, keyed by (site, unit).

    The first pool is the maximum over patches, or the value itself where there are no tokens.
    """
    first = units.isel(pool=0)
    columns = {
        name: first[name].to_numpy()
        for name in (
            "mean", "variance", "skewness", "kurtosis", "min", "max", "sparsity",
            "positive_share", "dead",
        )
    }  # fmt: skip
    for q in ("0.5", "0.99"):
        columns[f"q{q}"] = first["quantile"].sel(q=float(q)).to_numpy()
    for tail in units["tail"].to_numpy():
        columns[f"n_exemplars_{tail}"] = units["n_exemplars"].sel(tail=tail).to_numpy()
    table = pd.DataFrame(columns)
    table.insert(0, "site", site)
    table.insert(1, "unit", range(len(table)))
    table.insert(2, "pool", str(first["pool"].item()))
    return table
