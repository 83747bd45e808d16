"""A run folder opened for reading: what a probe saw, as xarray datasets and DataFrames."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from polysem.errors import MissingError, RunError, SpecError, did_you_mean
from polysem.store.guarded import open_arrays, read_parquet
from polysem.store.manifest import checked_manifest
from polysem.store.schema import (
    EMBEDDINGS,
    FORMAT,
    GATES,
    HEADS,
    IMAGES,
    OLDEST_FORMAT,
    TABLES,
    UNITS,
)  # fmt: skip

__all__ = ["Run", "read_manifest"]


class Run:
    """One probed model on one set of images.

    Open it with `Run.open`; everything is read when first asked for. The folder is plain JSON,
    parquet and zarr, and can be read without polysem.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : dict
        Model, data, sites, options, versions, status and skipped images.

    Examples
    --------
    >>> run = Run.open("runs/a")  # doctest: +SKIP
    >>> run.units("blocks.3.mlp.hook_post").top_value.sel(tail="upper")  # doctest: +SKIP
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder.

        Raises
        ------
        MissingError
            If there is no such folder.
        RunError
            If it is not a run, or of a format that another polysem reads.
        """
        path = Path(path).expanduser()
        manifest = read_manifest(path)
        if not OLDEST_FORMAT <= manifest["format"] <= FORMAT:
            newer = manifest["format"] > FORMAT
            versions = manifest.get("versions")
            version = versions.get("polysem") if isinstance(versions, dict) else None
            raise RunError(
                f"{path} has run format {manifest['format']}; this polysem reads "
                f"{OLDEST_FORMAT} to {FORMAT}: install polysem "
                f"{version or ('newer' if newer else 'as old as the run')}"
                f"{'' if newer else ', or probe again'}"
            )
        return cls(path, checked_manifest(path / "manifest.json", manifest))

    @property
    def sites(self) -> list[str]:
        """Names of the recorded sites in network order."""
        return list(self.manifest["sites"])

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row an image: image (index in the data), key, label, prediction, loss, correct."""
        return read_parquet(self._part("images.parquet"), IMAGES)

    @property
    def classes(self) -> list[str] | None:
        """Names of the data's classes; None for unlabelled data."""
        classes: list[str] | None = self.manifest["data"]["classes"]
        return classes

    def units(self, site: str) -> xr.Dataset:
        """Return what was recorded of every unit of a site, lazily; names in `store.schema`.

        Raises
        ------
        SpecError
            If the site was not recorded.
        """
        if site not in self.manifest["sites"]:
            near = did_you_mean(site, self.sites)
            raise SpecError(
                f"this run has no site {site!r}{near or '; it has ' + ', '.join(self.sites)}"
            )
        return open_arrays(self._part("units.zarr"), site, schema=UNITS)

    @cached_property
    def heads(self) -> xr.Dataset:
        """What was recorded of every head on every image: norms and, if asked, patterns.

        Raises
        ------
        RunError
            If no head was recorded.
        """
        if not (self.path / "heads.zarr").is_dir():
            raise RunError(
                f"{self.path} holds no heads: probe a transformer with its attn.hook_z sites"
            )
        return open_arrays(self._part("heads.zarr"), None, schema=HEADS)

    @cached_property
    def gates(self) -> xr.Dataset:
        """What `polysem heads` measured of every head; names in `store.schema.GATES`.

        Raises
        ------
        RunError
            If it was not measured yet.
        """
        if not (self.path / "gates.zarr").is_dir():
            raise RunError(f"{self.path} holds no study of heads; `polysem heads` makes one")
        return open_arrays(self._part("gates.zarr"), None, schema=GATES)

    @property
    def embeddings(self) -> xr.DataArray:
        """Embeddings of the run's images [image, dim], float32 of unit length, lazily.

        Rows are in the order of `images`; ``attrs`` name the ``encoder`` and its ``fingerprint``.

        Raises
        ------
        RunError
            If there are none.
        """
        return self._embedding("embeddings", f"polysem embed {self.path}, or probe with --embed")

    @property
    def clip_embeddings(self) -> xr.DataArray:
        """Embeddings of the run's images by a vision-language model; otherwise as `embeddings`.

        Raises
        ------
        RunError
            If there are none.
        """
        return self._embedding("clip_embeddings", f"polysem describe-neurons {self.path}")

    def _embedding(self, name: str, command: str) -> xr.DataArray:
        store = self.path / f"{name}.zarr"
        if not store.is_dir():
            raise RunError(
                f"{self.path} holds no embeddings of its images; make them with {command}"
            )
        return open_arrays(store, None, schema=EMBEDDINGS)["embedding"]

    def crop_embeddings(self, site: str) -> xr.DataArray:
        """Return embeddings of the crops where exemplars fired [tail, unit, rank, dim], lazily.

        float32 of length 1, NaN where there is no exemplar.

        Raises
        ------
        RunError
            If there are none of this site.
        """
        return self.crops("crop_embeddings", site)["embedding"]

    def clip_crops(self, site: str) -> xr.Dataset:
        """Return what a vision-language model saw of the crops where exemplars fired, lazily.

        ``embedding`` as in `crop_embeddings`, and ``background`` [place, dim], of crops at random
        places of random images.

        Raises
        ------
        RunError
            If there is none of this site.
        """
        return self.crops("clip_crops", site)

    def crops(self, name: str, site: str) -> xr.Dataset:
        """Return embeddings of crops at a site, kept under a name; as above."""
        if not (self.path / f"{name}.zarr" / site).is_dir():
            raise RunError(
                f"{self.path} holds no embeddings of crops at {site}; make them with "
                f"polysem {'describe-neurons' if name == 'clip_crops' else 'embed'} {self.path} "
                f"--{'sites' if name == 'clip_crops' else 'crops'} '{site}'"
            )
        return open_arrays(self.path / f"{name}.zarr", site)

    @property
    def facet_directions(self) -> xr.DataArray:
        """What the facets of ``tables/facet_clusters.parquet`` were compared by [row, dim], lazily.

        Directions of length 1 from the mean of all embeddings.

        Raises
        ------
        RunError
            If there are none.
        """
        store = self.path / "facet_clusters.zarr"
        if not store.is_dir():
            raise RunError(
                f"{self.path} has no clusters of facets; make them with polysem clusters "
                f"{self.path} --of facets"
            )
        return open_arrays(store, None)["direction"]

    def has_table(self, name: str) -> bool:
        """Return whether there is a table of that name."""
        return (self.path / "tables" / f"{name}.parquet").is_file()

    def table(self, name: str) -> pd.DataFrame:
        """Return one of the tidy tables, ``tables/<name>.parquet``.

        Raises
        ------
        SpecError
            If there is no such table yet.
        """
        file = self.path / "tables" / f"{name}.parquet"
        if not file.is_file():
            known = sorted(f.stem for f in file.parent.glob("*.parquet"))
            raise SpecError(
                f"this run has no table {name!r}{did_you_mean(name, known)}; "
                f"it has {', '.join(known) or 'none'}"
            )
        return read_parquet(file, TABLES.get(name))

    def contributions(self, site: str) -> xr.Dataset:
        """Return the contribution maps of a site's exemplars, lazily.

        ``contribution`` [tail, unit, rank, y, x] over cells of the image, NaN where there is no
        exemplar; ``value`` and ``explained`` [tail, unit, rank]. Ranks may be fewer than the run's.

        Raises
        ------
        RunError
            If there are none of this site.
        """
        if not (self.path / "contributions.zarr" / site).is_dir():
            raise RunError(
                f"{self.path} holds no contribution maps of {site}; make them with "
                f"polysem explain --run {self.path} --model {self.manifest['model']['spec']}"
            )
        return open_arrays(self.path / "contributions.zarr", site)

    def upstream(self, site: str) -> xr.Dataset:
        """Return which units of an earlier site made a site's exemplars fire, lazily.

        ``share`` [tail, unit, rank, source_unit], NaN where there is no exemplar; ``value`` and
        ``explained`` [tail, unit, rank]; ``attrs`` name the ``source``. Ranks may be fewer than
        the run's.

        Raises
        ------
        RunError
            If there is none of this site.
        """
        if not (self.path / "upstream.zarr" / site).is_dir():
            raise RunError(
                f"{self.path} does not hold what made {site} fire upstream; trace it with polysem "
                f"explain --run {self.path} --model {self.manifest['model']['spec']} --upstream "
                f"--sites '{site}'"
            )
        return open_arrays(self.path / "upstream.zarr", site)

    def __repr__(self) -> str:
        model, data = self.manifest["model"]["name"], self.manifest["data"]["name"]
        return (
            f"Run({str(self.path)!r}: {model} on {self.manifest['n_images']:,} images of {data}, "
            f"{len(self.sites)} sites, {self.manifest['status']})"
        )

    def _part(self, name: str) -> Path:
        part = self.path / name
        if not part.exists():
            raise RunError(f"{self.path} is incomplete: {name} is not there; probe again")
        return part


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a run folder.

    Raises
    ------
    MissingError
        If there is no such folder.
    RunError
        If it is not a run folder.
    """
    if not path.exists():
        raise MissingError(f"no run folder at {path}; `polysem probe` makes one")
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise RunError(f"{path} is not a run: it has no manifest.json written by polysem")
    return manifest
