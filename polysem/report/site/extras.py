"""Folders beside runs that the site also shows: comparisons, evolutions, explanations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd
from PIL import Image

from polysem.errors import RunError
from polysem.report.site.parts import Shown

__all__ = ["Extra", "Kind", "Whole", "kind_of_folder", "open_extra", "shrunk_picture"]

Kind: TypeAlias = Literal["comparison", "evolution", "explanations"]

#: The file by which each kind of folder is known.
_MARKS: dict[str, Kind] = {
    "comparison.json": "comparison",
    "evolution.json": "evolution",
    "explain.json": "explanations",
}

#: Pixels along the longer side of pictures that are copied into the site, and their quality.
_LONGEST, _QUALITY = 1500, 80


@dataclass(frozen=True)
class Extra:
    """A folder that another command wrote.

    Attributes
    ----------
    kind : {"comparison", "evolution", "explanations"}
    path : Path
    key : str
        Its name in paths and links of the site.
    manifest : dict
        What its own JSON says.
    """

    kind: Kind
    path: Path
    key: str
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name on pages: to be escaped."""
        return self.path.name

    def table(self, name: str) -> pd.DataFrame:
        """Return ``<name>.parquet`` or ``<name>.csv`` of the folder.

        Raises
        ------
        RunError
            If it is not there, or damaged.
        """
        for file, read in ((f"{name}.parquet", pd.read_parquet), (f"{name}.csv", pd.read_csv)):
            if (self.path / file).is_file():
                try:
                    return read(self.path / file)
                except (OSError, ValueError):
                    raise RunError(f"{self.path / file} is damaged") from None
        raise RunError(f"{self.path} is incomplete: it has no {name}.parquet or {name}.csv")


@dataclass(frozen=True)
class Whole:
    """All that a site shows.

    Attributes
    ----------
    runs : list of Shown
    extras : list of Extra
    folder : Path
        The site being written.
    """

    runs: list[Shown]
    extras: list[Extra]
    folder: Path

    def of_kind(self, kind: Kind) -> list[Extra]:
        """Return the extras of a kind."""
        return [extra for extra in self.extras if extra.kind == kind]


def kind_of_folder(path: Path) -> Kind | None:
    """Return what a folder holds besides being a run; None if it may be a run."""
    return next((kind for mark, kind in _MARKS.items() if (path / mark).is_file()), None)


def open_extra(path: Path, key: str) -> Extra:
    """Open a folder that is no run.

    Raises
    ------
    RunError
        If its manifest is damaged, or it is of no kind that the site shows.
    """
    for mark, kind in _MARKS.items():
        if (path / mark).is_file():
            try:
                manifest = json.loads((path / mark).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                raise RunError(f"{path / mark} is damaged") from None
            return Extra(kind, path, key, manifest)
    raise RunError(f"{path} is no run, comparison, evolution or folder of explanations")


def shrunk_picture(source: Path, folder: Path, name: str) -> dict[str, Any]:
    """Copy a picture into the site as ``images/NAME.webp``; return its path and size.

    Raises
    ------
    RunError
        If it cannot be read.
    """
    place = Path("images") / f"{name}.webp"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    try:
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError):
        raise RunError(f"{source} is missing or damaged") from None
    if max(picture.size) > _LONGEST:
        picture.thumbnail((_LONGEST, _LONGEST))
    picture.save(folder / place, quality=_QUALITY, method=4)
    return {"src": place.as_posix(), "width": picture.width, "height": picture.height}
