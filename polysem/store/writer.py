"""A run folder being written: beside its final place until it is whole, then renamed into it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
import zarr

from polysem.errors import RunError
from polysem.store.run import read_manifest
from polysem.store.schema import EMBEDDINGS, FORMAT, HEADS, UNITS, Variable

__all__ = ["IMAGES", "RunWriter", "check_free", "disk_errors"]

#: Columns of images.parquet.
IMAGES = pa.schema(
    {
        "image": pa.int64(),
        "key": pa.string(),
        "label": pa.int64(),
        "prediction": pa.int64(),
        "loss": pa.float32(),
        "correct": pa.bool_(),
    }
)

#: Bytes that one chunk of a growing array aims at: large enough to compress, small to append.
_CHUNK_BYTES = 4 << 20


class RunWriter:
    """Write one run; use it as a context manager.

    Nothing appears at `out` before `finish`. If the block ends with an error, everything written
    is removed and an older run at `out` stays as it was.

    Parameters
    ----------
    out : str or Path
        Folder of the run.
    overwrite : bool, default False
        Replace a run that is there already.
    place : Path, optional
        Where it lies until it is whole, on the same drive as `out`; what is there goes.

    Raises
    ------
    RunError
        If `out` is taken, or is something other than a run.
    """

    def __init__(
        self, out: str | Path, *, overwrite: bool = False, place: Path | None = None
    ) -> None:
        self.out = Path(out).expanduser()
        self._place = place
        check_free(self.out, overwrite)

    def __enter__(self) -> RunWriter:
        with disk_errors(self.out):
            place = self.out.absolute()
            self.path = self._place or place.with_name(
                f".{place.name}.partial-{uuid.uuid4().hex[:8]}"
            )
            try:
                if self._place is not None:
                    shutil.rmtree(self.path, ignore_errors=True)
                (self.path / "tables").mkdir(parents=True)
                self._images = pq.ParquetWriter(self.path / "images.parquet", IMAGES)
            except OSError:
                shutil.rmtree(self.path, ignore_errors=True)
                raise
        self._arrays: dict[tuple[str, str], zarr.Array[Any]] = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._images.close()
        except OSError:
            if error is None:
                raise
        finally:
            shutil.rmtree(self.path, ignore_errors=True)

    def add_images(self, columns: Mapping[str, Any] | pa.Table) -> None:
        """Append rows to images.parquet, a row group of their own; missing values are None."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns), schema=IMAGES)
        with disk_errors(self.out):
            self._images.write_table(table)

    def add_pooled(self, site: str, values: np.ndarray) -> None:
        """Append the pooled activations of some images, float32 [image, pool, unit]."""
        self._append("units.zarr", site, "pooled", UNITS["pooled"], values)

    def add_heads(self, name: str, values: np.ndarray) -> None:
        """Append one measure of every head for some images, float32 [image, layer, head]."""
        self._append("heads.zarr", "", name, HEADS[name], values)

    def add_embeddings(self, values: np.ndarray, attrs: Mapping[str, str]) -> None:
        """Append the embeddings of some images, float32 [image, dim]; `attrs` name the encoder."""
        variable = EMBEDDINGS["embedding"]
        self._append("embeddings.zarr", "", "embedding", variable, values, attrs)

    def write_units(self, site: str, units: xr.Dataset) -> None:
        """Write the statistics of one site beside what `add_pooled` has put there."""
        encoding = {name: {"chunks": _chunks(units[name])} for name in units}
        with disk_errors(self.out):
            units.to_zarr(
                self.path / "units.zarr", group=site, mode="a", zarr_format=3, consolidated=False,
                encoding=encoding,
            )  # fmt: skip

    def write_heads(self, coords: xr.Dataset) -> None:
        """Write the coordinates of the heads that `add_heads` has measured."""
        with disk_errors(self.out):
            coords.to_zarr(self.path / "heads.zarr", mode="a", zarr_format=3, consolidated=False)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write one tidy table to ``tables/<name>.parquet``."""
        with disk_errors(self.out):
            table.to_parquet(self.path / "tables" / f"{name}.parquet", index=False)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and move the whole run to its place."""
        with disk_errors(self.out):
            self._images.close()
            text = json.dumps({"format": FORMAT, **manifest}, indent=2, ensure_ascii=False)
            (self.path / "manifest.json").write_text(text + "\n", encoding="utf-8")
            old = None
            if self.out.exists():
                old = self.path.with_name(f"{self.path.name}-old")
                os.replace(self.out, old)
            try:
                os.replace(self.path, self.out)
            except BaseException:  # Ctrl-C between the two: the older run goes back
                if old is not None:
                    os.replace(old, self.out)
                raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _append(
        self,
        store: str,
        group: str,
        name: str,
        variable: Variable,
        values: np.ndarray,
        attrs: Mapping[str, str] | None = None,
    ) -> None:
        with disk_errors(self.out):
            array = self._arrays.get((group, name))
            if array is None:
                parent = zarr.open_group(self.path / store, path=group or None, mode="a")
                array = self._arrays[group, name] = parent.create_array(
                    name,
                    shape=(0, *values.shape[1:]),
                    chunks=(_rows_per_chunk(values.shape[1:]), *values.shape[1:]),
                    dtype="float32",
                    fill_value=float("nan"),
                    dimension_names=variable.dims,
                    attributes={"long_name": variable.meaning, **(attrs or {})},
                )
            array.append(values.astype(np.float32, copy=False))


def _chunks(array: xr.DataArray) -> tuple[int, ...]:
    """Return chunks that are cut along units only: few files, and a unit is read from one."""
    sizes = dict(array.sizes)
    if "unit" in sizes:
        per_unit = array.nbytes // max(1, sizes["unit"])
        sizes["unit"] = min(sizes["unit"], max(1, _CHUNK_BYTES // max(1, per_unit)))
    return tuple(max(1, size) for size in sizes.values())


def _rows_per_chunk(row: Sequence[int]) -> int:
    return max(1, _CHUNK_BYTES // (4 * int(np.prod(row, dtype=np.int64))))


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a place that is taken.

    Raises
    ------
    RunError
        If `out` is a file, something other than a run, or a run that may not be replaced.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if not out.exists():
        return
    if not out.is_dir():
        raise RunError(f"{out} is a file; name a folder for the run")
    try:
        read_manifest(out)
    except RunError:
        raise RunError(
            f"{out} holds something other than a run and is left alone; name another folder"
        ) from None
    if not overwrite:
        raise RunError(f"{out} already holds a run; name another folder or use --overwrite")


_REFUSALS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EFBIG, errno.EIO,
    errno.ENAMETOOLONG, errno.ENOENT, errno.EEXIST, errno.ESTALE,
)  # fmt: skip


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn what a disk may refuse into a sentence.

    Raises
    ------
    RunError
        If the disk is full, or the folder may not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk of {out} is full; free some space, or name a folder elsewhere with --out"
            ) from None
        if error.errno in _REFUSALS:
            raise RunError(f"{out} cannot be written: {error.strerror}") from None
        raise
