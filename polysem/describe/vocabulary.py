"""The words that units may be called by: a list that ships with polysem, or the user's own."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from polysem.data.shipped import shipped_file, shipped_names
from polysem.errors import DataError, MissingError, did_you_mean

__all__ = ["Vocabulary", "load_vocabulary"]

_COLUMN = "concept"


@dataclass(frozen=True)
class Vocabulary:
    """Concepts in the order of their file, each once.

    Attributes
    ----------
    name : str
        Of the list that ships, or the path of the file.
    concepts : tuple of str
    notes : tuple of str
        What was left out of the file and why, a sentence each.
    """

    name: str
    concepts: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of the concepts in their order, to know cached embeddings by."""
        return hashlib.sha256("\n".join(self.concepts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.concepts)


def load_vocabulary(spec: str | Path) -> Vocabulary:
    """Read concepts from a list that ships with polysem, or from a file.

    Parameters
    ----------
    spec : str or Path
        ``common`` (objects, attributes, textures and scenes, from simple to specific),
        ``dermatology`` or ``shapes``; or a text file with one concept a line, or a ``.csv`` file
        with a column `concept` (or a single column).

    Returns
    -------
    Vocabulary
        Without blank lines and repetitions (letters' case aside), which its notes tell of.

    Raises
    ------
    MissingError
        If there is neither a list nor a file of this name.
    DataError
        If the file is not UTF-8 text, has no column `concept`, or holds no concept.
    """
    names = shipped_names("concepts", ".csv")
    path = shipped_file("concepts", f"{spec}.csv") if str(spec) in names else Path(spec)
    try:
        raw = path.expanduser().read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        hint = did_you_mean(str(spec), names) or f"; lists that ship: {', '.join(names)}"
        raise MissingError(f"there is no vocabulary {str(spec)!r}{hint}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    text = _decode(raw, path)
    lines = _column(text, path) if path.suffix.lower() == ".csv" else text.splitlines()
    concepts, notes = _each_once(lines)
    if not concepts:
        raise DataError(f"{path} holds no concept; write one a line")
    return Vocabulary(str(spec), tuple(concepts), tuple(f"{path}: {note}" for note in notes))


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not UTF-8 text: line {line} holds the byte 0x{raw[error.start]:02x}; save "
            "it as UTF-8"
        ) from None


def _column(text: str, path: Path) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0]]
    if _COLUMN in header:
        place = header.index(_COLUMN)
        return [row[place] if place < len(row) else "" for row in rows[1:]]
    if max(map(len, rows)) == 1:
        return [row[0] for row in rows]
    columns = ", ".join(" ".join(cell.split())[:40] for cell in header[:12])
    raise DataError(f"{path} has no column {_COLUMN!r}; it has {columns}")


def _each_once(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the concepts, and sentences about what was left out."""
    kept: dict[str, str] = {}
    repeated: list[str] = []
    n_blank = 0
    for line in lines:
        concept = " ".join(line.split())
        if not concept:
            n_blank += 1
        elif concept.casefold() in kept:
            repeated.append(concept)
        else:
            kept[concept.casefold()] = concept
    notes = []
    if n_blank:
        notes.append(f"{n_blank} blank line{'s' * (n_blank > 1)} left out")
    if repeated:
        shown = ", ".join(map(repr, repeated[:3])) + (", …" if len(repeated) > 3 else "")
        notes.append(
            f"{len(repeated)} repeated concept{'s' * (len(repeated) > 1)} left out: {shown}"
        )
    return list(kept.values()), notes
