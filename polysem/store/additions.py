"""What later commands add to a finished run: tables and arrays, each whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import xarray as xr

from polysem.errors import RunError
from polysem.store.run import Run
from polysem.store.writer import disk_errors

__all__ = ["add_arrays", "add_table"]


def add_table(
    run: Run,
    name: str,
    table: pd.DataFrame,
    *,
    meanings: Mapping[str, str],
    made_by: Mapping[str, str] | None = None,
) -> Path:
    """Write ``tables/<name>.parquet`` into a run, in place of an older one of that name.

    Parameters
    ----------
    run : Run
    name : str
    table : DataFrame
        Tidy: one row a unit (site, unit), a head (layer, head), or whatever the name says.
    meanings : mapping
        What each column holds, with unit, range and source; kept in the file, and given back by
        ``run.table(name).attrs["columns"]``.
    made_by : mapping, optional
        What else the table rests on, such as a model's name; given back by
        ``run.table(name).attrs["made_by"]``.

    Raises
    ------
    ValueError
        If a column is not explained, or an explained one is not there.
    RunError
        If the disk refuses, or the place is a link that leads out of the run.
    """
    if set(meanings) != set(table.columns):
        odd = sorted(set(meanings) ^ set(table.columns))
        raise ValueError(f"columns and meanings of the table {name!r} differ in {odd}")
    file = run.path / "tables" / f"{name}.parquet"
    kept = table.copy(deep=False)
    kept.attrs = {"columns": dict(meanings)}
    if made_by:
        kept.attrs["made_by"] = dict(made_by)
    _require_inside(run, file)
    with disk_errors(run.path):
        file.parent.mkdir(exist_ok=True)
        part = _beside(file)
        try:
            kept.to_parquet(part, index=False)
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
    return file


def add_arrays(
    run: Run,
    name: str,
    arrays: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    keep: bool = False,
) -> Path:
    """Write ``<name>.zarr`` into a run, in place of an older one of that name.

    Parameters
    ----------
    run : Run
    name : str
        Without the ending.
    arrays : Dataset, or mapping of str to Dataset
        Several are groups of the store, by name. Each variable says in ``attrs["long_name"]``
        what it holds.
    keep : bool, default False
        Keep groups of the older store that are not among the new ones.

    Raises
    ------
    RunError
        If the disk refuses, or the place is a link that leads out of the run.
    """
    store = run.path / f"{name}.zarr"
    for group, _ in _groups(arrays):
        _require_inside(run, store / (group or ""))
    with disk_errors(run.path):
        part = _beside(store)
        old = _beside(store)
        try:
            if keep and store.exists():
                renewed = [group for group, _ in _groups(arrays) if group is not None]
                shutil.copytree(store, part, ignore=lambda _, names: set(renewed) & set(names))
            for group, part_of in _groups(arrays):
                part_of.to_zarr(part, group=group, mode="a", zarr_format=3, consolidated=False)
            if store.exists():
                os.replace(store, old)
            os.replace(part, store)
        except BaseException:  # Ctrl-C between the two: the older arrays go back
            if old.exists() and not store.exists():
                os.replace(old, store)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    return store


def _require_inside(run: Run, place: Path) -> None:
    """Refuse a place that a link, or a name, leads out of the run: a run may come from anywhere."""
    if not place.resolve().is_relative_to(run.path.resolve()):
        raise RunError(f"{place} leads out of the run; remove the link, or probe again")


def _groups(
    arrays: xr.Dataset | Mapping[str, xr.Dataset],
) -> list[tuple[str | None, xr.Dataset]]:
    return [(None, arrays)] if isinstance(arrays, xr.Dataset) else list(arrays.items())


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.partial-{uuid.uuid4().hex[:8]}")
