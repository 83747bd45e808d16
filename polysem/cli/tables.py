"""Tables as commands print and write them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polysem.store.tables import save_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["print_table", "write_table"]


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
