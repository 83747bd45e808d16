"""Tables as commands print and write them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from polysem.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["print_table", "save_table", "save_text", "write_table"]


def print_table(table: pd.DataFrame, *, title: str | None = None) -> None:
    """Print a table with aligned columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left")
    for name in table.columns:
        drawn.add_column(str(name), justify="left" if table[name].dtype.kind in "OUT" else "right")
    for row in table.itertuples(index=False):
        cells = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)
        drawn.add_row(*(Text(cell) for cell in cells))
    # a pipe or file has no edge at which columns would have to be cut
    Console(width=None if sys.stdout.isatty() else 240).print(drawn)


def write_table(table: pd.DataFrame, folder: Path, *, name: str = "table") -> None:
    """Print a bench's table and write it to ``folder/name.csv``.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    (file,) = save_table(table, folder, name, endings=(".csv",))
    print_table(table)
    print(f"wrote {file}")


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
            _replace(file, lambda part: table.to_csv(part, index=False))
        else:
            _replace(file, lambda part: table.to_parquet(part, index=False))
    return files


def save_text(text: str, file: Path) -> Path:
    """Write a text file in UTF-8, which appears when it is whole, and return it.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    _replace(file, lambda part: part.write_text(text, encoding="utf-8"))
    return file


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then put it there."""
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
