"""Images of the site: each once, many to a file, small enough that tens of thousands stay light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from polysem.report.exemplars import Images, read_image

__all__ = ["Sprites", "first_seen", "thumbnail_size", "write_sprites"]

#: Thumbnails in a row and in a column of a sheet. Small sheets: a card shows images of several.
_ACROSS = 8

#: Pixels along the longer side of a thumbnail, and where there are very many. Multiples of 16,
#: the blocks of WebP, so that neighbours do not bleed into each other.
_SIDE, _SMALL, _MANY = 96, 64, 40_000

_QUALITY = 72


@dataclass(frozen=True)
class Sprites:
    """Where each image is on the sheets.

    Attributes
    ----------
    slots : int64 array [image]
        By index of the image in the data: its slot, counted through all sheets; -1 for none.
    missing : list of int
        Slots whose image is no longer there.
    width, height : int
        Pixels of a thumbnail.
    sheets : list of str
        Paths in the site.
    """

    slots: npt.NDArray[np.int64]
    missing: list[int]
    width: int
    height: int
    sheets: list[str]

    @property
    def all_missing(self) -> bool:
        """Whether none of the images is there any more."""
        return bool(self.missing) and len(self.missing) == int((self.slots >= 0).sum())

    def describe(self) -> dict[str, Any]:
        """Return what the pages need to find a slot."""
        return {
            "across": _ACROSS, "width": self.width, "height": self.height, "sheets": self.sheets,
            "missing": self.missing,
        }  # fmt: skip


def first_seen(images: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return the distinct images in the order in which they first come; negative ones are none.

    Units that are neighbours then have their images on neighbouring sheets.

    >>> first_seen([np.array([[7, 3], [7, -1]]), np.array([[2, 3]])]).tolist()
    [7, 3, 2]
    """
    flat = np.concatenate([some.reshape(-1) for some in images]) if images else np.zeros(0, int)
    distinct, first = np.unique(flat[flat >= 0], return_index=True)
    found: npt.NDArray[np.int64] = distinct[np.argsort(first)]
    return found


def thumbnail_size(height: int, width: int, n_images: int) -> tuple[int, int]:
    """Return height and width of thumbnails of images of this size.

    >>> thumbnail_size(224, 224, 500), thumbnail_size(32, 32, 500), thumbnail_size(128, 256, 90_000)
    ((96, 96), (32, 32), (32, 64))
    """
    longer = max(height, width)
    scale = min(1.0, (_SMALL if n_images > _MANY else _SIDE) / longer)
    return max(1, round(height * scale)), max(1, round(width * scale))


def write_sprites(
    images: Images,
    wanted: npt.NDArray[np.int64],
    folder: Path,
    name: str,
    *,
    size: tuple[int, int],
    on_image: Callable[[int, int], None] = lambda _done, _total: None,
) -> Sprites:
    """Write the wanted images onto sheets ``images/NAME/0000.webp``, one sheet in memory at a time.

    Parameters
    ----------
    images : callable
        As for `report.figures.contact_sheet`; called once an image.
    wanted : int64 array
        Distinct indices into the data, in the order of their slots.
    folder : Path
        The site.
    name : str
        Of the folder of sheets.
    size : tuple of int
        Height and width of what the model sees.
    on_image : callable
        Told how many are done, of how many.
    """
    height, width = thumbnail_size(*size, len(wanted))
    per_sheet = _ACROSS * _ACROSS
    place = Path("images") / name
    slots = np.full(int(wanted.max()) + 1 if len(wanted) else 0, -1, dtype=np.int64)
    slots[wanted] = np.arange(len(wanted))
    missing: list[int] = []
    sheets: list[str] = []
    for start in range(0, len(wanted), per_sheet):
        some = wanted[start : start + per_sheet]
        rows = -(-len(some) // _ACROSS)
        sheet = np.full((rows * height, _ACROSS * width, 3), 127, dtype=np.uint8)
        for i, image in enumerate(some.tolist()):
            pixels = read_image(images, image)
            if pixels is None:
                missing.append(start + i)
            else:
                y, x = (i // _ACROSS) * height, (i % _ACROSS) * width
                sheet[y : y + height, x : x + width] = _shrunk(pixels, (height, width))
            on_image(start + i + 1, len(wanted))
        if len(missing) < start + len(some):  # where nothing is there, no sheet is needed
            (folder / place).mkdir(parents=True, exist_ok=True)
            file = place / f"{start // per_sheet:04d}.webp"
            Image.fromarray(sheet).save(folder / file, quality=_QUALITY, method=4)
            sheets.append(file.as_posix())
        else:
            sheets.append("")
    return Sprites(slots, missing, width, height, sheets)


def _shrunk(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if pixels.shape[:2] == size:
        return pixels
    resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(resized)
