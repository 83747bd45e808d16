"""Contribution maps of a run's exemplars: what in each image made each unit fire, kept in the run.

Other commands read the maps with `Run.contributions` and need neither model nor images.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr

from polysem.data.dataset import ImageData
from polysem.errors import NonFiniteError, SpecError
from polysem.explain.maps import shrink
from polysem.explain.run_exemplars import (
    Attributed,
    Exemplars,
    attribute,
    is_bcos,
    open_again,
    site_exemplars,
)
from polysem.models.load import LoadedModel
from polysem.sites import select_sites
from polysem.store.additions import add_arrays
from polysem.store.run import Run

__all__ = ["CONTRIBUTIONS", "explain_run"]

#: Name of the arrays in the run.
CONTRIBUTIONS = "contributions"

#: Cells along the longer side of maps of networks without patches, at most.
_CELLS = 16


def explain_run(
    run: Run | str | Path,
    model: str | Path | LoadedModel,
    *,
    sites: str | Iterable[str] | None = None,
    data: str | ImageData | None = None,
    exemplars: int | None = None,
    cells: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Write a contribution map for each exemplar of each unit into a run.

    Of B-cos networks ``Σ_channels x ⊙ W(x)``, of others input times gradient, towards the unit's
    activation where the exemplar peaks. Both are summed over the cells of a grid.

    Parameters
    ----------
    run : Run or path
    model : str, Path or LoadedModel
        The model that the run was probed with.
    sites : str or iterable of str, optional
        Globs over the run's sites; all by default.
    data : str or ImageData, optional
        Where the images are, if they have moved.
    exemplars : int, optional
        Only so many of each tail; all that the run has by default.
    cells : int, optional
        Along the longer side of a map, at most its pixels. By default the patches of a
        transformer, and 16 for other networks.
    device : str, default "auto"
    progress : bool, default True

    Returns
    -------
    Path
        The store, ``contributions.zarr``, with a group for each site: ``contribution``
        [tail, unit, rank, y, x], ``value`` and ``explained`` [tail, unit, rank].

    Raises
    ------
    RunError
        If the run was probed with other weights.
    DataError
        If the images are not those of the run.
    SpecError
        If no site matches, or an option is out of range.
    NonFiniteError
        If a map is not finite.
    """
    for name, number in {"exemplars": exemplars, "cells": cells}.items():
        if number is not None and number < 1:
            raise SpecError(f"{name} must be at least 1, not {number}")
    opened = run if isinstance(run, Run) else Run.open(run)
    chosen = opened.sites if sites is None else select_sites(opened.sites, sites)
    loaded, source = open_again(opened, model, data, device)
    found = {site: site_exemplars(opened, site, exemplars) for site in chosen}
    maps = _Maps(found, _grid(loaded, cells))
    attribute(loaded, source, found, maps.take, progress=progress)
    method = "bcos" if is_bcos(loaded) else "input_gradient"
    facts = {"method": method, "model_sha256": loaded.sha256}
    arrays = {site: maps.dataset(site).assign_attrs(facts) for site in chosen}
    return add_arrays(opened, CONTRIBUTIONS, arrays, keep=True)


def _grid(loaded: LoadedModel, cells: int | None) -> tuple[int, int]:
    """Return rows and columns of the maps."""
    height, width = loaded.transform.size
    patch = getattr(getattr(loaded.model, "patch_embed", None), "patch_size", None)
    if cells is None and patch is not None:
        return max(1, height // patch[0]), max(1, width // patch[1])
    longer = min(cells or _CELLS, max(height, width))
    scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


class _Maps:
    """The maps of all sites, filled as they come."""

    def __init__(self, found: dict[str, Exemplars], grid: tuple[int, int]) -> None:
        self.found, self.grid = found, grid
        self.maps = {
            name: np.full((*each.shape, *grid), np.nan, np.float32) for name, each in found.items()
        }
        self.value = {n: np.full(each.shape, np.nan, np.float32) for n, each in found.items()}
        self.explained = {n: np.full(each.shape, np.nan, np.float32) for n, each in found.items()}

    def take(self, some: Attributed) -> None:
        """Keep the maps of some exemplars."""
        full = some.contribution.sum(2)
        some.fill(self.maps[some.site], shrink(full, self.grid))
        some.fill(self.value[some.site], some.value)
        some.fill(self.explained[some.site], full.sum((-2, -1)))

    def dataset(self, name: str) -> xr.Dataset:
        """Return the maps of a site with what they mean.

        Raises
        ------
        NonFiniteError
            If one is not finite.
        """
        each = self.found[name]
        if not np.isfinite(self.maps[name][each.at]).all():
            raise NonFiniteError(
                f"a contribution map of {name} holds NaN or infinite values: the weights are at "
                "fault; nothing was written"
            )
        top = ("tail", "unit", "rank")
        meanings = {
            "contribution": "Σ_channels x ⊙ ∂y/∂x, of B-cos networks x ⊙ W(x), summed over cells "
            "of the image, towards firing in the tail",
            "value": "how strongly the unit fired where it peaked; the lower tail's negative",
            "explained": "sum of the contributions over the image",
        }
        data = {
            "contribution": ((*top, "y", "x"), self.maps[name]),
            "value": (top, self.value[name]),
            "explained": (top, self.explained[name]),
        }
        variables = {
            key: xr.Variable(dims, array, {"long_name": meanings[key]})
            for key, (dims, array) in data.items()
        }
        return xr.Dataset(variables, coords={"tail": np.array(each.tails, dtype=object)})
