"""Which part of a data set is meant: train, val or test; every reader chooses by the same rules."""

from __future__ import annotations

from collections.abc import Iterable

from polysem.errors import SpecError, did_you_mean

__all__ = ["ALL", "choose_splits", "is_split"]

#: The word that joins all splits.
ALL = "all"

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
