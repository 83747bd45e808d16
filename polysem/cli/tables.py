"""Tables as commands print and write them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polysem.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["print_table", "write_table", "write_tables"]


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


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Print a bench's table and write it to ``folder/table.csv``.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    write_tables({"table": table}, folder)
    print_table(table)
    print(f"wrote {folder / 'table.csv'}")


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write tables to ``folder/NAME.csv``.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from None
