"""Where a command may write: looked at before any work is done."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from polysem.errors import RunError

__all__ = ["require_free"]


def require_free(out: Path, files: Collection[str], *, overwrite: bool) -> None:
    """Refuse a folder that a command may not write its files to.

    Parameters
    ----------
    out : Path
        Not there yet, empty, or with nothing but an older result of the same command.
    files : collection of str
        Names of the files that the command writes.
    overwrite : bool
        Whether an older result may be replaced.

    Raises
    ------
    RunError
        If it is a file, holds something else, or an older result that may not be replaced.
    """
    if out.is_file():
        raise RunError(f"{out} is a file; name a folder")
    if not out.exists():
        return
    found = {path.name for path in out.iterdir()}
    if found - set(files):
        raise RunError(
            f"{out} holds something else ({min(found - set(files))}) and is left alone; name "
            "another folder"
        )
    if found and not overwrite:
        raise RunError(f"{out} already holds results; name another folder or use --overwrite")
