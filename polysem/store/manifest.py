"""What a manifest may say: held against it when a run is opened, before anybody believes it.

A run folder may come from anywhere. Site names become names of files and of groups of arrays, and
sizes become memory, so that neither is taken from a manifest as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polysem.errors import RunError, SpecError
from polysem.sites import parse_site

__all__ = ["Manifest", "checked_manifest"]


class Manifest(dict[str, Any]):
    """A manifest, or a section of it, whose missing keys are one sentence."""

    def __init__(self, entries: Mapping[str, Any], file: Path) -> None:
        super().__init__(entries)
        self.file = file

    def __missing__(self, key: str) -> Any:
        raise RunError(f"{self.file} says nothing of {key!r}; probe again")


def checked_manifest(file: Path, said: Mapping[str, Any]) -> Manifest:
    """Return a manifest whose entries have the types that everybody expects.

    Parameters
    ----------
    file : Path
        For messages.
    said : mapping
        What the file holds. Entries that nothing here knows are left as they are.

    Raises
    ------
    RunError
        If an entry is of another type, or a site has a name that is none.
    """
    found = _checked(file, "", said, _ENTRIES)
    for section, entries in _SECTIONS.items():
        if isinstance(found.get(section), Mapping):
            found[section] = _checked(file, f"{section}.", found[section], entries)
    sites = {}
    for name, facts in found.get("sites", {}).items():
        try:
            parse_site(name)
        except SpecError as error:
            raise RunError(f"{file} is damaged: {error}") from None
        if not isinstance(facts, Mapping):
            raise RunError(f"{file} is damaged: what it says of the site {name} is no mapping")
        sites[name] = _checked(file, f"sites.{name}.", facts, _SITE)
    if "sites" in found:
        found["sites"] = Manifest(sites, file)
    return found


Fits = Callable[[Any], bool]


def _checked(
    file: Path, where: str, said: Mapping[str, Any], entries: Mapping[str, Fits]
) -> Manifest:
    for key, fits in entries.items():
        if key in said and not fits(said[key]):
            raise RunError(f"{file} is damaged: {where}{key} is {str(said[key])[:60]!r}")
    return Manifest(said, file)


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _are_skipped(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(image, Mapping) and _is_word(image.get("key")) and _is_word(image.get("reason"))
        for image in value
    )


def _is_grid(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


_ENTRIES: Mapping[str, Fits] = {
    "status": _is_word, "n_images": _is_count, "sites": _is_mapping, "model": _is_mapping,
    "data": _is_mapping, "options": _is_mapping, "embedding": _or_none(_is_mapping),
    "skipped": _are_skipped, "notes": _are_words, "seconds": _is_number, "versions": _is_mapping,
    "quantile_rank_error": _is_number,
}  # fmt: skip

_SECTIONS: Mapping[str, Mapping[str, Fits]] = {
    "model": {
        "spec": _is_word, "name": _is_word, "sha256": _is_word, "transform": _is_mapping,
        "classes": _or_none(_are_words), "info": _is_mapping,
    },
    "data": {
        "name": _is_word, "fingerprint": _is_word, "n_images": _is_count, "labelled": _is_flag,
        "classes": _or_none(_are_words),
    },
    "options": {"top_k": _is_count},
    "embedding": {"encoder": _is_word, "fingerprint": _is_word},
}  # fmt: skip

_SITE: Mapping[str, Fits] = {
    "dims": _are_words, "unit": _is_word, "n_units": _is_count, "signed": _is_flag,
    "pools": lambda value: _are_words(value) and bool(value),
    "tails": lambda value: value in (["upper"], ["upper", "lower"]),
    "grid": _or_none(_is_grid),
}  # fmt: skip
