"""What ships with polysem's source tree: small checkpoints and vocabularies, below ``data/``."""

from __future__ import annotations

from pathlib import Path

from polysem.errors import MissingError

__all__ = ["shipped_file", "shipped_names"]

_FOLDER = Path(__file__).parents[2] / "data"


def shipped_file(*parts: str) -> Path:
    """Return the path of a file or folder that ships, such as ``("models", "a.safetensors")``.

    Raises
    ------
    MissingError
        If it is not there: polysem was installed without its ``data`` folder.
    """
    path = _FOLDER.joinpath(*parts)
    if not path.exists():
        raise MissingError(
            f"there is no {'/'.join(parts)} at {path}: it is part of polysem's source tree; "
            'install with `pip install -e ".[dev]"` from a clone'
        )
    return path


def shipped_names(folder: str, ending: str) -> list[str]:
    """Return the names, without ending, of the files that ship in a folder of ``data/``."""
    return sorted(path.name.removesuffix(ending) for path in (_FOLDER / folder).glob(f"*{ending}"))
