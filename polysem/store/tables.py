"""Tables as files of their own, beside or outside of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from polysem.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["save_table"]


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
        part = file.with_name(f".{file.name}.partial-{os.getpid()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".csv":
                table.to_csv(part, index=False)
            else:
                table.to_parquet(part, index=False)
            os.replace(part, file)
        except OSError as error:
            raise RunError(f"{file} cannot be written: {error.strerror or error}") from None
        finally:
            with suppress(OSError):
                part.unlink()
    return files
