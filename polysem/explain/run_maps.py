"""Contribution maps of a run's exemplars: what in each image made each unit fire, kept in the run.

One forward pass serves all units of all sites that have an image among their exemplars; their
maps are batched vector-Jacobian products. Other commands read the maps with `Run.contributions`
and need neither model nor images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from polysem.data.again import load_again
from polysem.data.dataset import ImageData
from polysem.device import choose_device
from polysem.errors import NonFiniteError, RunError, SpecError
from polysem.explain.forward import explaining, forward
from polysem.explain.linear import require_bcos, summarising
from polysem.explain.maps import shrink
from polysem.models.load import LoadedModel, load_model
from polysem.progress import progress_bar
from polysem.sites import Site, parse_site, select_sites
from polysem.store.additions import add_arrays
from polysem.store.run import Run

__all__ = ["CONTRIBUTIONS", "explain_run"]

#: Name of the arrays in the run.
CONTRIBUTIONS = "contributions"

#: Images whose graphs are kept at a time, and rows of W(x) in one backward pass.
_AT_A_TIME = {"cpu": (4, 32), "cuda": (32, 512)}

#: Cells along the longer side of maps of networks without patches, at most.
_CELLS = 16


@dataclass(frozen=True)
class _Exemplars:
    """The exemplars of one site, one row each.

    Attributes
    ----------
    site : Site
    image : int64 array [row]
        Index in the data.
    at : tuple of int64 array
        Index of each row into [tail, unit, rank].
    position : int64 array [row]
        Patch or place where it peaks, counted row by row; -1 where there are none.
    shape : tuple of int
        Sizes of tail, unit and rank.
    tails : list of str
    """

    site: Site
    image: npt.NDArray[np.int64]
    at: tuple[npt.NDArray[np.int64], ...]
    position: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    tails: list[str]


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
    place = choose_device(device)
    loaded = model if isinstance(model, LoadedModel) else load_model(str(model), device=place)
    _require_same_weights(opened, loaded)
    source = data if isinstance(data, ImageData) else load_again(opened.manifest["data"], data)
    if source.fingerprint != opened.manifest["data"]["fingerprint"]:
        raise RunError(f"{source.name} does not hold the images that {opened.path} was probed on")
    found = {site: _exemplars(opened, site, exemplars) for site in chosen}
    maker = _Maker(loaded, source, found, _grid(loaded, cells), next(loaded.model.parameters()))
    with progress_bar(unit="maps", show=progress) as move:
        done, total = 0, sum(len(each.image) for each in found.values())
        for images in maker.batches():
            done += maker.explain(images)
            move("explain", done, total)
    arrays = {site: maker.dataset(site) for site in chosen}
    return add_arrays(opened, CONTRIBUTIONS, arrays)


def _require_same_weights(run: Run, loaded: LoadedModel) -> None:
    probed = run.manifest["model"]
    if loaded.sha256 != probed["sha256"]:
        raise RunError(
            f"{run.path} was probed with other weights than those of {loaded.spec}: "
            f"{probed['spec']}, digest {probed['sha256'][:12]} and not {loaded.sha256[:12]}"
        )


def _exemplars(run: Run, name: str, limit: int | None) -> _Exemplars:
    units = run.units(name)
    top = units["top_image"].to_numpy()[..., :limit]
    at = np.nonzero(~np.isnan(top))
    if "top_y" in units:
        width = units.sizes["x"]
        places = units["top_y"].to_numpy() * width + units["top_x"].to_numpy()
        position = places[..., :limit][at].astype(np.int64)
    else:
        position = np.full(len(at[0]), -1)
    tails = [str(tail) for tail in units["tail"].to_numpy()]
    return _Exemplars(parse_site(name), top[at].astype(np.int64), at, position, top.shape, tails)


def _grid(loaded: LoadedModel, cells: int | None) -> tuple[int, int]:
    """Return rows and columns of the maps."""
    height, width = loaded.transform.size
    patch = getattr(getattr(loaded.model, "patch_embed", None), "patch_size", None)
    if cells is None and patch is not None:
        return max(1, height // patch[0]), max(1, width // patch[1])
    longer = min(cells or _CELLS, max(height, width))
    scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


class _Maker:
    """The maps of all sites, filled image by image."""

    def __init__(
        self,
        loaded: LoadedModel,
        source: ImageData,
        found: dict[str, _Exemplars],
        grid: tuple[int, int],
        like: Tensor,
    ) -> None:
        self.loaded, self.source, self.found, self.grid, self.like = (
            loaded, source, found, grid, like,
        )  # fmt: skip
        self.n_images, self.n_rows = _AT_A_TIME.get(like.device.type, (8, 64))
        self.maps = {
            name: np.full((*each.shape, *grid), np.nan, np.float32) for name, each in found.items()
        }
        self.value = {n: np.full(each.shape, np.nan, np.float32) for n, each in found.items()}
        self.explained = {n: np.full(each.shape, np.nan, np.float32) for n, each in found.items()}
        try:
            require_bcos(loaded.model)
            self.method = "bcos"
        except SpecError:
            self.method = "input_gradient"

    def batches(self) -> list[list[int]]:
        """Return the images that are exemplars, those of equally many units together."""
        every = np.concatenate([each.image for each in self.found.values()])
        images, counts = np.unique(every, return_counts=True)
        order = [int(i) for i in images[np.argsort(-counts, kind="stable")]]
        return [order[i : i + self.n_images] for i in range(0, len(order), self.n_images)]

    def explain(self, images: list[int]) -> int:
        """Fill the maps of all units that have these images; return how many maps."""
        model = self.loaded.model
        pixels = torch.stack([self.loaded.transform(self.source.read(i)) for i in images])
        x = self.loaded.transform.normalize(pixels.to(self.like.device)).to(self.like.dtype)
        seen: dict[str, Tensor] = {}
        # keeps the attention pattern, which goes backwards for many rows at a time
        prepared = (
            summarising(model, kernels_for_rows=True)
            if self.method == "bcos"
            else explaining(model, kernels_for_rows=True)
        )
        n_maps = 0
        with prepared:
            x.requires_grad_()
            points = {name: partial(_keep, seen, name) for name in self.found}
            _, prefix, _ = forward(model, x, points)
            for name, each in self.found.items():
                n_maps += self._site(name, each, images, seen[name], x, prefix)
        return n_maps

    def _site(
        self,
        name: str,
        each: _Exemplars,
        images: list[int],
        activation: Tensor,
        x: Tensor,
        prefix: int,
    ) -> int:
        mine = [np.flatnonzero(each.image == image) for image in images]
        most = max(len(rows) for rows in mine)
        size = max(1, self.n_rows // len(images))
        for start in range(0, most, size):
            chunk = [rows[start : start + size] for rows in mine]
            n_rows = max(len(rows) for rows in chunk)
            ones = activation.new_zeros(n_rows, *activation.shape)
            for i, rows in enumerate(chunk):
                for k, row in enumerate(rows):
                    value = self._read(each, row, activation, ones[k], i, prefix)
                    self.value[name][tuple(a[row] for a in each.at)] = value
            (gradient,) = torch.autograd.grad(
                activation, x, ones, retain_graph=True, is_grads_batched=True,
                materialize_grads=True,
            )  # fmt: skip
            full = (gradient * x.detach()).sum(2)
            cells = shrink(full, self.grid).cpu().numpy()
            sums = full.sum((-2, -1)).cpu().numpy()
            for i, rows in enumerate(chunk):
                at = tuple(a[rows] for a in each.at)
                self.maps[name][at] = cells[: len(rows), i]
                self.explained[name][at] = sums[: len(rows), i]
        return sum(len(rows) for rows in mine)

    def _read(
        self, each: _Exemplars, row: int, activation: Tensor, ones: Tensor, i: int, prefix: int
    ) -> float:
        """Point at one unit of image i in `ones`, and return how strongly it fired."""
        tail, unit = each.tails[each.at[0][row]], int(each.at[1][row])
        sign, dims, position = (1 if tail == "upper" else -1), each.site.dims, each.position[row]
        if "head" in dims:  # the derivative of a length is the direction
            z = activation[i, prefix + position, unit].detach()
            length = float(torch.linalg.vector_norm(z))
            ones[i, prefix + position, unit] = z / max(length, 1e-30)
            return length
        index: tuple[int, ...]
        if "channel" in dims:
            index = (i, unit, *divmod(int(position), activation.shape[3]))
        else:
            index = (i, unit) if position < 0 else (i, prefix + int(position), unit)
        ones[index] = sign
        return sign * float(activation.detach()[index])

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
        rule = "Σ_channels x ⊙ W(x)" if self.method == "bcos" else "Σ_channels x ⊙ ∂y/∂x"
        meanings = {
            "contribution": f"{rule} summed over cells of the image, towards firing in the tail",
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
        facts = {"method": self.method, "model_sha256": self.loaded.sha256}
        tails = np.array(each.tails, dtype=object)
        return xr.Dataset(variables, coords={"tail": tails}, attrs=facts)


def _keep(seen: dict[str, Tensor], name: str, activation: Tensor) -> None:
    seen[name] = activation
