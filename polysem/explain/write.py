"""Explanations on disk: a folder of pictures, arrays and an index, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image

from polysem.errors import RunError
from polysem.explain.colour import Ground
from polysem.explain.explain import COLUMNS, Explanations
from polysem.store.folders import whole_folder

__all__ = ["overlay", "require_free", "write_explanations"]

_MARK = "explain.json"

#: Pictures smaller than this are enlarged to it, pixel by pixel.
_SIDE = 224


def write_explanations(
    found: Explanations,
    out: str | Path,
    *,
    ground: Ground = "white",
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
    more: Mapping[str, Callable[[Path], object]] | None = None,
) -> Path:
    """Write a folder with everything that was found.

    ``index.csv`` is the table; ``maps.npz`` holds each method's maps, ``colour`` and ``values``;
    ``images/NNNN-….png`` are the image, an overlay of each method's map and the explanation in
    colour; ``explain.json`` says where all this comes from.

    Parameters
    ----------
    found : Explanations
    out : str or Path
        Folder, which appears when it is whole.
    ground : {"white", "black", "transparent"}
        Of pictures in colour.
    overwrite : bool, default False
        Replace an older folder of explanations; nothing else is ever replaced.
    facts : mapping, optional
        JSON for ``explain.json``.
    more : mapping of str to callable, optional
        Files to add, each by a function that writes to a path.

    Raises
    ------
    RunError
        If `out` is taken, or the disk refuses.
    """
    out = Path(out).expanduser()
    require_free(out, overwrite=overwrite)
    with whole_folder(out) as part:
        (part / "images").mkdir()
        found.table().to_csv(part / "index.csv", index=False)
        with (part / "maps.npz").open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **_arrays(found))
        _write_pictures(found, part / "images", ground)
        for name, write in (more or {}).items():
            write(part / name)
        text = json.dumps(
            {
                "format": 1,
                "architecture": found.model,
                "methods": list(found.maps),
                "columns": COLUMNS,
                "skipped": found.skipped,
                **(facts or {}),
            },
            indent=2,
            ensure_ascii=False,
        )
        (part / _MARK).write_text(text + "\n", encoding="utf-8")
    return out


def overlay(
    pixels: npt.NDArray[np.uint8], values: npt.NDArray[np.floating]
) -> npt.NDArray[np.uint8]:
    """Lay a signed map over an image in grey: red speaks for the target, blue against it.

    Strength of colour is the share of the 99.5 % quantile of absolute values.

    Parameters
    ----------
    pixels : uint8 array [y, x, 3]
    values : array [y, x]

    Returns
    -------
    uint8 array [y, x, 3]
    """
    size = np.abs(values)
    end = float(np.quantile(size, 0.995)) or float(size.max()) or 1.0
    share = np.clip(values / end, -1, 1)
    coloured = colormaps["RdBu_r"](0.5 + share / 2)[..., :3]
    grey = (pixels @ np.array([0.299, 0.587, 0.114]) / 255)[..., None]
    grey = 0.35 + 0.6 * grey  # neither black nor white, on which colours are lost
    strength = np.abs(share)[..., None] ** 0.7
    mixed = grey * (1 - strength) + coloured * strength
    return _bytes(mixed)


def _arrays(found: Explanations) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = dict(found.maps)
    arrays |= {"image": found.indices, "values": found.values, "pixels": found.pixels}
    if found.colours is not None:
        arrays["colour"] = found.colours
    return arrays


def _write_pictures(found: Explanations, folder: Path, ground: Ground) -> None:
    for i, pixels in enumerate(found.pixels):
        _save(pixels, folder / f"{i:04d}-image.png")
        if found.colours is not None:
            _save(_on_ground(found.colours[i], ground), folder / f"{i:04d}-colour.png")
        for method, maps in found.maps.items():
            _save(overlay(pixels, maps[i]), folder / f"{i:04d}-{method}.png")


def _on_ground(rgba: npt.NDArray[np.floating], ground: Ground) -> npt.NDArray[np.uint8]:
    if ground != "transparent":
        alpha = rgba[..., 3:]
        rgba = rgba[..., :3] * alpha + (1 - alpha) * (ground == "white")
    return _bytes(rgba)


def _bytes(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[np.uint8] = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return rounded


def _save(pixels: npt.NDArray[np.uint8], file: Path) -> None:
    picture = Image.fromarray(pixels)
    times = -(-_SIDE // min(picture.size))
    if times > 1:
        size = (picture.width * times, picture.height * times)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.save(file)


def require_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that explanations may not be written to.

    Raises
    ------
    RunError
        If it is a file, holds something else, or explanations that may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise RunError(f"{out} is a file; name a folder for the explanations")
    names = {"images", "index.csv", "maps.npz", "overview.png", _MARK}
    if not (out / _MARK).is_file() or {p.name for p in out.iterdir()} - names:
        raise RunError(
            f"{out} holds something other than explanations and is left alone; name another folder"
        )
    if not overwrite:
        raise RunError(f"{out} already holds explanations; name another folder or use --overwrite")
