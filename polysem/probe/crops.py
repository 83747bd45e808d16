"""`embed_crops`: what an encoder sees of the place where each exemplar fired.

A unit often answers to part of an image. Facets therefore compare crops around the peak of the
activation map instead of whole images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from PIL import Image
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

__all__ = ["crop_box", "embed_crops"]

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


def embed_crops(
    run: Run,
    encoder: str | Path | Encoder = "model",
    *,
    sites: str,
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
    sites : str
        Globs of sites, comma-separated.
    data, batch_size, device, progress
        As for `embed`.

    Returns
    -------
    Path
        One group a site, variable ``embedding`` [tail, unit, rank, dim], NaN where there is no
        exemplar; read by ``run.crop_embeddings(site)``.

    Raises
    ------
    PolysemError
        As for `embed`, and if no site has maps.
    """
    place = choose_device(device)
    mapped = [n for n in select_sites(run.sites, sites) if "top_map" in run.units(n)]
    if not mapped:
        raise SpecError(f"{sites}: units of these sites have no place in the image to crop")
    used = encoder_for(run, encoder, device=place)
    source = data if isinstance(data, ImageData) else load_again(run.manifest["data"], data)
    seen = Transform.from_dict(run.manifest["model"]["transform"])
    size = batch_size or (256 if place.type == "cuda" else 64)
    groups: dict[str, xr.Dataset] = {}
    with progress_bar(unit="crops", show=progress) as move:
        for site in mapped:
            units = run.units(site)
            grid = (units.sizes["y"], units.sizes["x"])
            where = np.stack([units[f"top_{axis}"].to_numpy() for axis in ("image", "y", "x")])
            there = np.isfinite(where).all(0)
            places, index = np.unique(where[:, there].astype(np.int64), axis=1, return_inverse=True)

            def told(done: int, total: int, site: str = site) -> None:
                move(f"crops of {site}", done, total)

            found = _embed_places(source, seen, places, grid, used, size, told)
            values = np.full((*there.shape, found.shape[1]), np.nan, dtype=np.float32)
            values[there] = found[index.reshape(-1)]
            meaning = {
                "long_name": "embedding of the crop where the exemplar fired, of length 1",
                "encoder": used.spec,
                "fingerprint": used.fingerprint,
            }
            groups[site] = xr.Dataset(
                {"embedding": (("tail", "unit", "rank", "dim"), values, meaning)},
                coords={"tail": units["tail"].to_numpy().astype(object)},
            )
    return add_arrays(run, "crop_embeddings", groups, keep=_by_same(run, used.fingerprint))


def _by_same(run: Run, fingerprint: str) -> bool:
    """Whether the crops that a run has, if any, were embedded by the same encoder."""
    for group in sorted((run.path / "crop_embeddings.zarr").glob("*/")):
        if run.crop_embeddings(group.name).attrs.get("fingerprint") != fingerprint:
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
