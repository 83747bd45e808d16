"""Arrays and tables of a run that may be damaged, or made to hurt: read safely, or one sentence.

Arrays are read when they are asked for, which is when damage shows; and what a file declares of
its size is held against its bytes before memory is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from polysem.errors import RunError
from polysem.store.schema import LABELS, Variable

__all__ = ["open_arrays", "read_parquet"]

#: What may be declared: so many bytes, and so many times what lies on the disk. Constant arrays
#: compress to next to nothing, and are small; large ones hold activations, which do not.
_FREE_BYTES, _MOST_COMPRESSED = 1 << 30, 256


def open_arrays(
    store: Path, group: str | None, *, schema: Mapping[str, Variable] | None = None
) -> xr.Dataset:
    """Open arrays of a zarr store, lazily.

    Parameters
    ----------
    store : Path
    group : str, optional
        Of several in the store the one to open.
    schema : mapping, optional
        Axes that arrays have, by name; those that it does not know are left as they are.

    Raises
    ------
    RunError
        If it is missing, damaged, or declares more than it can hold; of an array whose bytes are
        damaged, when its values are read.
    """
    where = store if group is None else store / group
    try:
        _require_modest(where)
        # format 2 only: arrays of format 2 may name pickle as what unpacks them
        found: xr.Dataset = xr.open_zarr(
            store, group=group, consolidated=False, chunks=None, zarr_format=3
        )
        _require_axes(found, schema or {})
    except Exception as error:  # whatever parsers and decoders make of damaged bytes
        why = f" ({error})" if isinstance(error, _OddError) else ""
        raise RunError(f"{where} is missing or damaged{why}; probe again") from None
    guarded = {
        str(name): (array.dims, _guarded(array.variable, f"{where}/{name}"), array.attrs)
        for name, array in found.data_vars.items()
    }
    return xr.Dataset(guarded, coords=found.coords, attrs=found.attrs)


class _OddError(Exception):
    """A finding of this module, already put in words."""


def _require_modest(folder: Path) -> None:
    declared = 0.0
    for file in folder.glob("*/zarr.json"):
        shape = json.loads(file.read_text(encoding="utf-8")).get("shape", [])
        declared += 8.0 * math.prod(float(side) for side in shape)
    if declared > _FREE_BYTES:
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if declared > _FREE_BYTES + _MOST_COMPRESSED * held:
            raise _OddError(f"it declares {declared:,.0f} bytes and holds {held:,}")


def _require_axes(found: xr.Dataset, schema: Mapping[str, Variable]) -> None:
    # what was appended image by image brings no labels, the statistics of the same units do
    statistics = found.drop_vars("pooled", errors="ignore")
    for axis, labels in LABELS.items():
        if axis not in statistics.sizes:
            continue
        if axis not in found.coords or not set(found[axis].values.tolist()) <= set(labels):
            raise _OddError(f"its axis {axis} has other labels than {', '.join(map(str, labels))}")
    for name, array in found.data_vars.items():
        known = schema.get(str(name))
        if known is not None and (array.dims != known.dims or array.dtype.kind not in "biuf"):
            raise _OddError(
                f"{name} is {array.dtype} of the axes {', '.join(map(str, array.dims))}"
            )


class _Guarded(BackendArray):
    """Values that are read when they are asked for, and whose damage is one sentence."""

    def __init__(self, variable: xr.Variable, where: str) -> None:
        self.variable, self.where = variable, where
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        try:
            return np.asarray(self.variable[key].values)
        except Exception:  # whatever a decoder makes of damaged bytes
            raise RunError(f"{self.where} is damaged; probe again") from None


def _guarded(variable: xr.Variable, where: str) -> indexing.LazilyIndexedArray:
    return indexing.LazilyIndexedArray(_Guarded(variable, where))


def read_parquet(file: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a parquet table of a run.

    Parameters
    ----------
    file : Path
    columns : mapping, optional
        Columns that it must have, and numpy's letters of the types that each may be of.

    Raises
    ------
    RunError
        If it is damaged, declares more than it can hold, or lacks a column.
    """
    try:
        facts = pq.read_metadata(file)
        declared = 8 * facts.num_rows * max(1, facts.num_columns)
        if declared > _FREE_BYTES + _MOST_COMPRESSED * file.stat().st_size:
            raise _OddError(f"it declares {facts.num_rows:,} rows")
        table = pd.read_parquet(file)
        explained = table.attrs.get("columns", {})
        odd = [name for name in (*(columns or ()), *explained) if name not in table.columns]
        odd += [
            name
            for name, kinds in (columns or {}).items()
            if name in table.columns and table[name].dtype.kind not in kinds
        ]
        if odd:
            raise _OddError(f"its column {odd[0]!r} is missing or of another type")
    except Exception as error:  # whatever pandas and pyarrow make of damaged bytes
        why = f" ({error})" if isinstance(error, _OddError) else ""
        raise RunError(f"{file} is damaged{why}; probe again") from None
    return table
