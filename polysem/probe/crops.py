"""`embed_crops`: what an encoder sees of the place where each exemplar fired.

A unit often answers to part of an image. Facets therefore compare crops instead of whole images:
around what contributed most, where ``polysem explain --run`` has written contribution maps, else
around the peak of the activation map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from PIL import Image
from scipy.ndimage import uniform_filter
from torch import Tensor

from polysem.data.again import load_again
from polysem.data.dataset import ImageData
from polysem.device import choose_device
from polysem.errors import SpecError
from polysem.models.encoder import Encoder
from polysem.models.transform import Transform
from polysem.probe.embed import encoder_for
from polysem.probe.embedder import require_directions
from polysem.progress import progress_bar
from polysem.sites import select_sites
from polysem.store.additions import add_arrays
from polysem.store.run import Run

__all__ = ["Places", "crop_box", "embed_crops", "has_places", "places_of"]

#: Side of a crop as a share of the shorter side of what the model saw.
_SHARE = 0.4


def crop_box(
    y: int, x: int, grid: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the square around a place of the map, as left, top, right, bottom in pixels.

    Its side is 0.4 of the image's shorter side, or one place of the map if that is larger; it is
    moved inwards where it would leave the image.

    >>> crop_box(0, 7, (8, 8), (64, 64))
    (38, 0, 64, 26)
    """
    height, width = size
    least = max(height / grid[0], width / grid[1])
    side = min(round(max(_SHARE * min(size), least)), height, width)
    top = round((y + 0.5) * height / grid[0] - side / 2)
    left = round((x + 0.5) * width / grid[1] - side / 2)
    top, left = min(max(top, 0), height - side), min(max(left, 0), width - side)
    return left, top, left + side, top + side


@dataclass(frozen=True)
class Places:
    """Where the exemplars of a site fired.

    Attributes
    ----------
    at : float array [3, tail, unit, rank]
        Index of the image in the data, row and column of a grid over it; NaN if no exemplar.
    grid : (int, int)
        Rows and columns of the grid.
    by : str
        What tells the place: the peak of the activation map, or the crop that contributed most.
    """

    at: npt.NDArray[np.float64]
    grid: tuple[int, int]
    by: Literal["activation", "contribution"]


def has_places(run: Run, site: str) -> bool:
    """Whether it is known where in their images the exemplars of a site fired."""
    return "top_map" in run.units(site) or _has_contributions(run, site)


def places_of(run: Run, site: str) -> Places:
    """Return where the exemplars of a site fired.

    Where contribution maps are there, the place is the centre of the crop that contributed most
    towards the exemplar's activation; of ranks without a map, the peak of the activation map.
    """
    units = run.units(site)
    image = units["top_image"].to_numpy()
    if "top_map" in units:
        grid = (units.sizes["y"], units.sizes["x"])
        y, x = units["top_y"].to_numpy(), units["top_x"].to_numpy()
    else:
        grid = (1, 1)
        y, x = (np.where(np.isnan(image), np.nan, 0) for _ in grid)
    if not _has_contributions(run, site):
        return Places(np.stack([image, y, x]), grid, "activation")
    maps = run.contributions(site)["contribution"]
    fine = (maps.sizes["y"], maps.sizes["x"])
    y, x = ((of + 0.5) * new // old for of, new, old in zip((y, x), fine, grid, strict=True))
    n_ranks = maps.sizes["rank"]
    for tail, name in enumerate(units["tail"].to_numpy()):
        towards = maps.sel(tail=name).to_numpy() * (-1 if name == "lower" else 1)
        peak_y, peak_x = _strongest_window(towards, max(1, round(_SHARE * min(fine))))
        y[tail, :, :n_ranks] = np.where(np.isnan(peak_y), y[tail, :, :n_ranks], peak_y)
        x[tail, :, :n_ranks] = np.where(np.isnan(peak_x), x[tail, :, :n_ranks], peak_x)
    return Places(np.stack([image, y, x]), fine, "contribution")


def _has_contributions(run: Run, site: str) -> bool:
    return (run.path / "contributions.zarr" / site).is_dir()


def _strongest_window(
    maps: npt.NDArray[np.floating], side: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the centre of the window with the largest sum, NaN for maps that are."""
    sums = uniform_filter(maps.astype(np.float64), size=(0, 0, side, side), mode="constant")
    known = np.isfinite(maps).all((2, 3))
    place = np.nan_to_num(sums, nan=-np.inf).reshape(*maps.shape[:2], -1).argmax(-1)
    y, x = np.unravel_index(place, maps.shape[2:])
    return np.where(known, y, np.nan), np.where(known, x, np.nan)


def embed_crops(
    run: Run,
    encoder: str | Path | Encoder = "model",
    *,
    sites: str | Iterable[str],
    name: str = "crop_embeddings",
    background: int = 0,
    data: str | ImageData | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Embed crops of the exemplars of some sites, ``RUN/crop_embeddings.zarr``.

    Places that several units share are embedded once. There are as many forward passes as
    different places, up to units times exemplars.

    Parameters
    ----------
    run : Run
    encoder : str, Path or Encoder, default "model"
        As for `embed`.
    sites : str or iterable of str
        Globs of sites, comma-separated.
    name : str
        Of the arrays in the run.
    background : int
        Crops at random places of random images to embed too: what any crop looks like.
    data, batch_size, device, progress
        As for `embed`.

    Returns
    -------
    Path
        One group a site, variable ``embedding`` [tail, unit, rank, dim], NaN where there is no
        exemplar; read by ``run.crop_embeddings(site)``. With a background, also ``background``
        [place, dim].

    Raises
    ------
    PolysemError
        As for `embed`, and if no site has maps.
    """
    place = choose_device(device)
    mapped = [n for n in select_sites(run.sites, sites) if has_places(run, n)]
    if not mapped:
        raise SpecError(f"{sites}: units of these sites have no place in the image to crop")
    used = encoder_for(run, encoder, device=place)
    source = data if isinstance(data, ImageData) else load_again(run.manifest["data"], data)
    seen = Transform.from_dict(run.manifest["model"]["transform"])
    size = batch_size or (256 if place.type == "cuda" else 64)
    groups: dict[str, xr.Dataset] = {}
    anywhere: dict[tuple[int, int], npt.NDArray[np.float32]] = {}
    with progress_bar(unit="crops", show=progress) as move:
        for site in mapped:
            found = places_of(run, site)

            def told(done: int, total: int, site: str = site) -> None:
                move(f"crops of {site}", done, total)

            def embedded(
                at: npt.NDArray[np.int64],
                grid: tuple[int, int] = found.grid,
                told: Callable[[int, int], None] = told,
            ) -> npt.NDArray[np.float32]:
                places, index = np.unique(at, axis=1, return_inverse=True)
                values = _embed_places(source, seen, places, grid, used, size, told)
                return values[index.reshape(-1)]

            there = np.isfinite(found.at).all(0)
            some = embedded(found.at[:, there].astype(np.int64))
            values = np.full((*there.shape, some.shape[1]), np.nan, dtype=np.float32)
            values[there] = some
            attrs = {"encoder": used.spec, "fingerprint": used.fingerprint, "place": found.by}
            attrs["long_name"] = "embedding of the crop where the exemplar fired, of length 1"
            arrays = {"embedding": xr.Variable(("tail", "unit", "rank", "dim"), values, attrs)}
            if background:
                if found.grid not in anywhere:
                    anywhere[found.grid] = embedded(_anywhere(run, background, found.grid))
                meaning = "embedding of crops at random places of random images"
                arrays["background"] = xr.Variable(
                    ("place", "dim"), anywhere[found.grid], {"long_name": meaning}
                )
            tails = run.units(site)["tail"].to_numpy().astype(object)
            groups[site] = xr.Dataset(arrays, coords={"tail": tails})
    return add_arrays(run, name, groups, keep=_by_same(run, name, used.fingerprint))


def _anywhere(run: Run, n_places: int, grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return random places [image y x, place], of each image before any comes again."""
    rng = np.random.default_rng(0)
    images = run.images["image"].to_numpy()
    rounds = -(-n_places // len(images))
    image = np.concatenate([rng.permutation(images) for _ in range(rounds)])[:n_places]
    return np.stack([image, *(rng.integers(n, size=n_places) for n in grid)])


def _by_same(run: Run, name: str, fingerprint: str) -> bool:
    """Whether the crops that a run has, if any, were embedded by the same encoder."""
    for group in sorted((run.path / f"{name}.zarr").glob("*/")):
        if run.crops(name, group.name)["embedding"].attrs.get("fingerprint") != fingerprint:
            return False
    return True


def _embed_places(
    source: ImageData,
    seen: Transform,
    places: npt.NDArray[np.int64],
    grid: tuple[int, int],
    encoder: Encoder,
    batch_size: int,
    told: Callable[[int, int], None],
) -> np.ndarray:
    """Return embeddings [place, dim] of places [image y x, place], ordered by image."""
    device = next(encoder.module.parameters()).device
    parts: list[np.ndarray] = []
    waiting: list[Tensor] = []
    keys: list[str] = []
    current, picture = -1, None
    for done, (image, y, x) in enumerate(places.T):
        if image != current:
            pixels = seen(source.read(int(image))).permute(1, 2, 0).contiguous().numpy()
            current, picture = int(image), Image.fromarray(pixels)
        assert picture is not None
        crop = picture.crop(crop_box(int(y), int(x), grid, seen.size))
        waiting.append(encoder.transform(crop))
        keys.append(source.keys[current])
        if len(waiting) == batch_size or done == places.shape[1] - 1:
            values = encoder(torch.stack(waiting).to(device)).cpu().numpy()
            require_directions(values, keys, encoder.spec)
            parts.append(values)
            waiting, keys = [], []
            told(done + 1, places.shape[1])
    return np.concatenate(parts)
