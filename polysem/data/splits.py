"""Which part of a data set is meant: train, val or test; every reader chooses by the same rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from polysem.errors import SpecError, did_you_mean

__all__ = ["ALL", "choose_splits", "is_split", "of_split"]

#: The word that joins all splits.
ALL = "all"

_NUMBERED = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")

_MEANINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def is_split(word: str) -> bool:
    """Whether a file or folder of this name is taken for a split.

    >>> is_split("Validation"), is_split("dogs")
    (True, False)
    """
    return any(word.lower() in words for words in _MEANINGS.values())


def choose_splits(name: str, available: Iterable[str], wanted: str | None) -> list[str]:
    """Return the splits to read, in the order in which they are available.

    ``val``, ``valid``, ``validation`` and ``dev`` mean the same, and so on. Without a wish, data
    with one split gives that one; data with several is refused, because probing train and test
    images by turns would go unnoticed.

    Parameters
    ----------
    name : str
        The spec, for messages.
    available : iterable of str
        What there is, in the data's own words.
    wanted : str, optional
        One of them, a synonym, or ``all``.

    Raises
    ------
    SpecError
        If the split is not there, or none was named and there are several.

    >>> choose_splits("a.npz", ["train", "val", "test"], "validation")
    ['val']
    """
    splits = list(available)
    if wanted == ALL or (wanted is None and len(splits) == 1):
        return splits
    if wanted is None and splits:
        usual = next((split for split in splits if split.lower() in _MEANINGS["test"]), splits[0])
        raise SpecError(
            f"{name} has the splits {', '.join(splits)}; add '?split={usual}' to the spec, "
            f"or '?split={ALL}' for all of them"
        )
    wanted = wanted or ""
    same = next((words for words in _MEANINGS.values() if wanted.lower() in words), (wanted,))
    chosen = [split for split in splits if split == wanted] or [
        split for split in splits if split.lower() in same
    ]
    if not chosen:
        there = f"there are {', '.join(splits)}" if splits else "it is not divided into splits"
        raise SpecError(f"{name} has no split {wanted!r}: {there}{did_you_mean(wanted, splits)}")
    return chosen


def of_split(name: str, files: Sequence[Path], wanted: str | None) -> list[bool]:
    """Return which files belong to the split wanted, by their names; all where none tells any.

    Parameters
    ----------
    name : str
        The spec, for messages.
    files : sequence of Path
        Relative to the folder of the data.
    wanted : str, optional
        As in `choose_splits`.

    Raises
    ------
    SpecError
        As in `choose_splits`.
    """
    words = [_told(file) for file in files]
    if not any(words) and wanted is None:
        return [True] * len(files)
    known = [word or file.stem for word, file in zip(words, files, strict=True)]
    chosen = choose_splits(name, dict.fromkeys(known if any(words) else ()), wanted)
    return [word in chosen for word in known]


def _told(file: Path) -> str | None:
    """Return the split that a file's name, or else its folder's, tells; None if neither does."""
    if shard := _NUMBERED.fullmatch(file.stem):
        return shard[1]
    first = re.split(r"[-_. ]", file.stem)[0]
    return next((word for word in (first, *reversed(file.parts[:-1])) if is_split(word)), None)
