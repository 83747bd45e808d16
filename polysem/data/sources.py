"""From a spec on the command line to images: finds out what lies there and calls its reader."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polysem.data.cifar import ARCHIVES, find_cifar, load_cifar
from polysem.data.dataset import ImageData
from polysem.data.folder import EXTENSIONS, load_folder
from polysem.data.ham10000 import TABLES, find_metadata, load_ham10000
from polysem.data.hub import load_hub
from polysem.data.medmnist import load_medmnist
from polysem.data.parquet import load_parquet
from polysem.data.shapes import shapes_from_spec
from polysem.data.shards import is_address
from polysem.data.splits import is_split
from polysem.data.subset import sample
from polysem.data.webdataset import load_webdataset
from polysem.errors import MissingError, SpecError, did_you_mean

__all__ = ["load_data"]

_PREFIX = re.compile(r"(?P<source>[A-Za-z][A-Za-z0-9_+-]+):(?P<target>.*)", re.DOTALL)
_SHAPES = re.compile(r"shapes($|[:?])")


@dataclass(frozen=True)
class _Source:
    """A reader and the options that it understands."""

    load: Callable[..., ImageData]
    options: tuple[str, ...]


_SOURCES = {
    "folder": _Source(load_folder, ("split", "label")),
    "parquet": _Source(load_parquet, ("split", "image", "label")),
    "cifar": _Source(load_cifar, ("split", "label")),
    "cifar10": _Source(partial(load_cifar, of_classes=10), ("split", "label")),
    "cifar100": _Source(partial(load_cifar, of_classes=100), ("split", "label")),
    "medmnist": _Source(load_medmnist, ("split", "label")),
    "ham10000": _Source(load_ham10000, ("split", "seed")),
    "webdataset": _Source(load_webdataset, ("split", "image", "label")),
    "hub": _Source(load_hub, ("split", "config", "image", "label")),
}

#: Readers that take addresses and patterns of many files, by how these end.
_ENDINGS = {".tar": "webdataset", ".parquet": "parquet"}
_SHARDED = tuple(_ENDINGS.values())

_EXPECTED = (
    "expected a path, one of "
    + ", ".join(f"{source}:PATH" for source in _SOURCES if source != "hub")
    + ", hub:ORG/NAME[:SPLIT] or shapes[:SPLIT], with options after it as in ?split=test"
)


def load_data(
    spec: str | os.PathLike[str],
    *,
    limit: int | None = None,
    split: str | None = None,
    seed: int = 0,
) -> ImageData:
    """Return the images that a spec names; nothing is decoded yet.

    A spec is a path, and what lies there is found out, or ``SOURCE:`` before it says so:

    =========================  ============================================================
    ``folder:PATH``            image files in class subfolders, or without labels
    ``parquet:PATH``           Hugging Face tables of encoded images, one file or several
    ``cifar10:PATH``           CIFAR as published, pickled or binary, folder or ``.tar.gz``;
                               ``cifar100:``, and ``cifar:`` for either
    ``webdataset:PATH``        tar shards as WebDataset writes them, see `load_webdataset`
    ``medmnist:PATH``          a MedMNIST ``.npz``
    ``ham10000:PATH``          HAM10000, metadata table and image folders
    ``hub:ORG/NAME[:SPLIT]``   a data set of the Hugging Face hub
    ``shapes[:SPLIT]``         drawn by polysem, see `shapes.shapes_from_spec`
    =========================  ============================================================

    Tar and parquet shards may be many, ``train-{000..123}.tar``, and lie in an object store, as
    ``s3://bucket/train-{000..123}.tar``: any address that fsspec reads.

    Options follow as in ``PATH?split=test&label=fine``: ``split`` (``all`` joins them); ``label``
    and ``image`` name columns, and ``label=none`` leaves labels out; ``config`` of a hub data
    set; ``seed`` of HAM10000's split.

    Parameters
    ----------
    spec : str or path
        What to load.
    limit : int, optional
        At most so many images, drawn at random with `seed` and kept in their order: stored data
        are often ordered by class, so the first images may show one class only. A smaller limit
        gives a subset of a larger one.
    split : str, optional
        The same as the option ``split`` in the spec.
    seed : int
        Of the random choice for `limit`, and of nothing else: which lesions HAM10000's splits
        hold does not follow it.

    Raises
    ------
    SpecError
        If the spec cannot be understood; accepted forms and near matches are in the message.
    MissingError
        If there is nothing at the path, or no such data set on the hub.
    DataError
        If what is there cannot be read, or does not hold together.
    """
    if limit is not None and limit < 1:
        raise SpecError(f"a limit of {limit} images leaves nothing to look at; give at least 1")
    data = _load(os.fspath(spec), split)
    return data if limit is None else sample(data, limit, seed=seed)


def _load(text: str, split: str | None) -> ImageData:
    if _SHAPES.match(text):
        return shapes_from_spec(_shapes_spec(text, split))
    target, options = _taken_apart(text)
    plain = is_address(target) or os.path.exists(target)
    prefix = None if plain else _PREFIX.fullmatch(target)
    source = prefix["source"].lower() if prefix else ""
    if prefix and source not in _SOURCES:
        near = did_you_mean(source, [*_SOURCES, "shapes"])
        raise SpecError(f"{text!r} names an unknown source of data {source!r}{near}; {_EXPECTED}")
    if source == "hub":
        where, colon, hub_split = prefix["target"].partition(":") if prefix else ("", "", "")
        if not where or (colon and not hub_split):
            raise SpecError(f"{text!r} names no data set; expected hub:ORG/NAME[:SPLIT]")
        text = _with_split(text, options, split)
        if hub_split and options.setdefault("split", hub_split) != hub_split:
            raise SpecError(f"{text!r} asks for two splits")
        return _SOURCES[source].load(where, name=text, **_understood(source, text, options))
    found = prefix["target"] if prefix else target
    if source in ("", *_SHARDED) and (is_address(found) or _is_pattern(found)):
        kind = source or _sharded_kind(found, text)
        text = _with_split(text, options, split)
        return _SOURCES[kind].load(found, name=text, **_understood(kind, text, options))
    path = _existing(found, text)
    kind = source or _kind(path)
    text = _with_split(text, options, split)
    return _SOURCES[kind].load(path, name=text, **_understood(kind, text, options))


def _is_pattern(target: str) -> bool:
    return any(c in target for c in "{*[") and not os.path.exists(target)


def _sharded_kind(target: str, text: str) -> str:
    """Return which reader takes shards of this name."""
    for ending, kind in _ENDINGS.items():
        if target.lower().endswith(ending):
            return kind
    raise SpecError(
        f"{text!r} does not say what lies there: name files that end in .tar or .parquet, or put "
        "webdataset: or parquet: before it"
    )


def _taken_apart(text: str) -> tuple[str, dict[str, str]]:
    """Return a spec without its options, and those; a path may itself hold a question mark."""
    target, mark, query = text.rpartition("?")
    if not mark or os.path.exists(text):
        return text, {}
    options: dict[str, str] = {}
    for part in query.split("&"):
        option, equals, value = part.partition("=")
        if not (option and equals and value):
            raise SpecError(f"{text!r}: {part!r} is no option; write them as in ?split=test&seed=1")
        if option in options:
            raise SpecError(f"{text!r} gives the option {option!r} twice")
        options[option] = value
    return target, options


def _with_split(text: str, options: dict[str, str], split: str | None) -> str:
    """Add a split that was given beside the spec to the options, and to the spec itself."""
    if split is None or options.get("split") == split:
        return text
    if "split" in options:
        raise SpecError(f"{text!r} asks for another split than {split!r}, which was also given")
    text += f"{'&' if options else '?'}split={split}"
    options["split"] = split
    return text


def _understood(kind: str, text: str, options: dict[str, str]) -> dict[str, Any]:
    known = _SOURCES[kind].options
    for option in options:
        if option not in known:
            near = did_you_mean(option, known)
            raise SpecError(
                f"{text!r}: {kind} data have no option {option!r}{near}; they have "
                f"{', '.join(known)}"
            )
    if "seed" not in options:
        return dict(options)
    if not re.fullmatch(r"\d{1,18}", options["seed"]):
        raise SpecError(f"{text!r}: the seed has to be a whole number, not {options['seed']!r}")
    return {**options, "seed": int(options["seed"])}


def _shapes_spec(text: str, split: str | None) -> str:
    source, mark, query = text.partition("?")
    name, colon, given = source.partition(":")
    if split is None:
        return text
    if colon and given != split:
        raise SpecError(f"{text!r} asks for another split than {split!r}, which was also given")
    return f"{name}:{split}{mark}{query}"


def _kind(path: Path) -> str:
    """Find out what lies at a path."""
    if path.is_dir():
        if find_metadata(path):
            return "ham10000"
        if find_cifar(path):
            return "cifar"
        inside = (p for p in path.iterdir() if p.name == "data" or is_split(p.name))
        tables = any(any(folder.glob("*.parquet")) for folder in (path, *inside))
        shards = any(path.glob("*.tar"))
        return "parquet" if tables else "webdataset" if shards else "folder"
    name = path.name.lower()
    if name.endswith(".tar") and "cifar" not in name:
        return "webdataset"
    kinds = {".parquet": "parquet", ".npz": "medmnist"}
    kinds |= dict.fromkeys(ARCHIVES, "cifar") | dict.fromkeys(TABLES, "ham10000")
    for ending, kind in kinds.items():
        if name.endswith(ending):
            return kind
    what = "a single image; give its folder" if name.endswith(EXTENSIONS) else "not known as data"
    raise SpecError(f"{path} is {what}; {_EXPECTED}")


def _existing(target: str, text: str) -> Path:
    """Return the path if something is there."""
    path = Path(target).expanduser()
    if target.strip() and os.path.exists(path):
        return path
    if not target.strip():
        raise SpecError(f"{text!r} names no data; {_EXPECTED}")
    near, above = "", path.absolute().parent
    if above.is_dir():
        near = did_you_mean(path.name, [*sorted(os.listdir(above)), "shapes"])
    raise MissingError(f"there is no data at {path}{near}")
