"""Folders that appear when they are whole, in place of older ones."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polysem.store.writer import disk_errors

__all__ = ["whole_folder"]


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out` when the block ends.

    If the block raises, it is removed and what was at `out` stays.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    place = Path(out).expanduser().absolute()
    part = place.with_name(f".{place.name}.partial-{uuid.uuid4().hex[:8]}")
    old = place.with_name(f".{place.name}.old-{uuid.uuid4().hex[:8]}")
    with disk_errors(place):
        try:
            part.mkdir(parents=True)
            yield part
            if place.exists():
                os.replace(place, old)
            os.replace(part, place)
        except BaseException:  # Ctrl-C between the two: the older folder goes back
            if old.exists() and not place.exists():
                os.replace(old, place)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
