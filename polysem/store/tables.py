"""Tables and texts as files of their own, beside or outside of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from polysem.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["save_table", "save_text"]


def save_table(
    table: pd.DataFrame,
    folder: Path,
    name: str,
    *,
    endings: Sequence[str] = (".parquet", ".csv"),
) -> list[Path]:
    """Write a table to ``folder/name.parquet`` and ``.csv``, and return the files.

    Each appears when it is whole. What columns mean (``table.attrs``) is kept in the parquet file.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    files = [folder / f"{name}{ending}" for ending in endings]
    for file in files:
        if file.suffix == ".csv":
            _replace(file, partial(table.to_csv, index=False))
        else:
            _replace(file, partial(table.to_parquet, index=False))
    return files


def save_text(text: str, file: Path) -> Path:
    """Write a text file, which appears when it is whole, and return it.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    _replace(file, lambda part: part.write_text(text, encoding="utf-8"))
    return file


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    part = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, file)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink()
