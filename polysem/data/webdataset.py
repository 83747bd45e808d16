"""Tar shards as WebDataset writes them, here or in an object store, read in parts.

The headers of each shard are read once and its images later by their place in the file, several
at a time: so images have numbers and keys, which a probe needs to go on after it was killed and to
be shared between processes. (`datasets` copies such shards to the disk, or else gives them as a
stream without length.)
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from polysem.data.blocks import BLOCK_BYTES, Block, BlockReader
from polysem.data.columns import NO_LABELS, labels_and_classes
from polysem.data.dataset import ImageData
from polysem.data.decode import decode_image
from polysem.data.fingerprint import data_sha256
from polysem.data.folder import EXTENSIONS
from polysem.data.shards import Shard, find_shards, is_address, shard_contents
from polysem.data.splits import of_split
from polysem.errors import DataError, ImageError, SpecError, did_you_mean

__all__ = ["WebDataset", "load_webdataset"]

_LABEL = "cls"

#: Longest member that is taken for a label.
_LABEL_BYTES = 256

#: Raised when listings that are kept between sessions would be misread.
_LISTING_FORMAT = 1


@dataclass(frozen=True)
class _Member:
    """One image of a shard.

    Attributes
    ----------
    key, ending : str
        Name of the sample, and how the member's goes on after the first dot.
    start, size : int
        Where its bytes are; size -1 of one that stands for the rest of a damaged shard.
    label : str or None
        What the label's member says.
    """

    key: str
    ending: str
    start: int
    size: int
    label: str | None = None


@dataclass(frozen=True)
class _Part:
    """Consecutive images of one shard, read at once."""

    shard: Shard
    places: tuple[tuple[int, int], ...]


class WebDataset(ImageData):
    """Images in tar shards, decoded when they are read.

    Parameters
    ----------
    name, keys, labels
        As in `ImageData`.
    shards : sequence of Shard
    members : sequence of sequence of _Member
        The images of each shard.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        shards: Sequence[Shard],
        members: Sequence[Sequence[_Member]],
        labels: npt.NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, keys, labels=labels, classes=classes)
        self.shards = shards
        parts = [part for s, m in zip(shards, members, strict=True) for part in _parts(s, m)]
        self._blocks = BlockReader([len(part.places) for part in parts], _Parts(tuple(parts)))

    def read(self, index: int) -> Image.Image:
        """Return image number `index`; see `decode_image` for how it is converted."""
        rows, at = self._blocks.fetch(index)
        content = rows[at]
        if content is None:
            raise ImageError(self.keys[index], "its shard is damaged from here on")
        return decode_image(content, key=self.keys[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of keys, labels, and each shard's name, size, version and first 64 KiB.

        Not of every byte: shards may be far away.
        """
        return data_sha256(self, shard_contents(self.shards))


def load_webdataset(
    pattern: str | Path,
    *,
    name: str,
    split: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> WebDataset:
    """Read tar shards whose members are samples: those with one name up to the first dot.

    The headers of all shards are read, and what is found is kept in the user's cache folder, so
    that shards in an object store are listed once. What follows the damage of a shard stands in
    the data as one image that cannot be read.

    Parameters
    ----------
    pattern : str or Path
        As for `find_shards`.
    name : str
        The spec, for messages.
    split : str, optional
        Of several splits the one to read, by the names of the shards as in ``train-0012.tar``.
    image : str, optional
        Ending of the images, such as ``jpg``; by default any image.
    label : str, optional
        Ending of the labels, ``cls`` where not given: whole numbers, or words. ``none`` leaves
        them out.

    Raises
    ------
    PolysemError
        If there are no such files, or no images in them, or labels are missing for some.
    """
    shards = find_shards(str(pattern), (".tar",))
    chosen = of_split(name, [Path(shard.name) for shard in shards], split)
    shards = [shard for shard, among in zip(shards, chosen, strict=True) if among]
    wanted = _LABEL if label is None else label
    members = [_listing(shard, image, wanted) for shard in shards]
    every = [member for of_shard in members for member in of_shard]
    whole = [member for member in every if member.size >= 0]
    if not whole:
        raise DataError(f"{name}: no images in {len(shards)} tar files, the first {shards[0].url}")
    keys = [f"{m.key}.{m.ending}" if m.size >= 0 else m.key for m in every]
    if len(set(keys)) < len(keys):  # names that are counted anew in every shard
        keys = [
            f"{shard.name}/{m.key}.{m.ending}"
            for shard, of_shard in zip(shards, members, strict=True)
            for m in of_shard
        ]
    labels = classes = None
    if wanted != NO_LABELS:
        values = [m.label for m in whole]
        if label is not None and not any(values):
            raise SpecError(f"{name}: no sample has a member .{label} to be its label")
        numbers = all(value is None or value.isdecimal() for value in values)
        named: list[object] = [int(v) if v and numbers else v for v in values]
        given = [key for key, m in zip(keys, every, strict=True) if m.size >= 0]
        found, classes = labels_and_classes(named, None, name=name, keys=given)
        if found is not None:
            labels = np.zeros(len(every), dtype=np.int64)
            labels[[m.size >= 0 for m in every]] = found
    return WebDataset(name, keys, shards=shards, members=members, labels=labels, classes=classes)


@dataclass(frozen=True)
class _Parts:
    """Reads parts for `BlockReader`; holds no open files, so that it pickles."""

    parts: tuple[_Part, ...]

    def __call__(self, number: int) -> Generator[Block[list[bytes | None]], None, None]:
        part = self.parts[number]
        real = [(start, size) for start, size in part.places if size >= 0]
        first = min((start for start, _ in real), default=0)
        last = max((start + size for start, size in real), default=0)
        content = part.shard.read(first, last) if real else b""
        rows = [
            content[start - first : start - first + size] if size >= 0 else None
            for start, size in part.places
        ]
        yield Block(rows, len(rows), len(content))


def _parts(shard: Shard, members: Sequence[_Member]) -> Iterator[_Part]:
    """Yield the images of a shard in parts of about a block."""
    places: list[tuple[int, int]] = []
    for member in members:
        if places and member.start + member.size - places[0][0] > BLOCK_BYTES:
            yield _Part(shard, tuple(places))
            places = []
        places.append((member.start, member.size))
    if places:
        yield _Part(shard, tuple(places))


def _listing(shard: Shard, image: str | None, label: str) -> list[_Member]:
    """Return the images of a shard, as kept from an earlier time where it was far away."""
    if not is_address(shard.url) or shard.url.startswith("file://"):
        return _listed(shard, image, label)
    asked = [_LISTING_FORMAT, shard.url, shard.size, shard.version, image, label]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = cache / "polysem" / "shards" / f"{digest}.json"
    # a store that gives no version may hold another file of that size tomorrow
    if shard.version:
        with suppress(OSError, ValueError, TypeError):
            return [_Member(*row) for row in json.loads(file.read_text(encoding="utf-8"))]
    members = _listed(shard, image, label)
    if shard.version:
        with suppress(OSError):  # a cache that cannot be written is none
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
            part.write_text(json.dumps([astuple(m) for m in members]), encoding="utf-8")
            os.replace(part, file)
    return members


def _listed(shard: Shard, image: str | None, label: str) -> list[_Member]:
    """Read the headers of a shard."""
    found: dict[str, _Member] = {}
    labels: dict[str, str] = {}
    other: set[str] = set()
    damaged, end = None, 0
    with shard.open() as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for info in archive:
                    if not info.isfile():
                        continue
                    folder, _, last = info.name.rpartition("/")
                    stem, _, ending = last.partition(".")
                    if not stem:  # a hidden file
                        continue
                    key = f"{folder}/{stem}" if folder else stem
                    end = info.offset_data + info.size
                    if ending == label and info.size <= _LABEL_BYTES:
                        text = archive.extractfile(info)
                        assert text is not None
                        labels[key] = text.read().decode(errors="replace").strip()
                    elif _is_image(ending, image) and key not in found:
                        found[key] = _Member(key, ending, info.offset_data, info.size)
                    else:
                        other.add(ending)
        except (tarfile.TarError, EOFError) as error:
            damaged = str(error)
    members = [_Member(m.key, m.ending, m.start, m.size, labels.get(m.key)) for m in found.values()]
    if image is not None and not members and damaged is None:
        raise SpecError(
            f"{shard.url} has no members .{image}{did_you_mean(image, other)}; "
            f"it has {', '.join(sorted(other)[:5]) or 'none'}"
        )
    # a tar file ends with two blocks of zeros; one without was cut off
    if damaged is not None or end + 2 * tarfile.BLOCKSIZE > shard.size:
        members.append(_Member(shard.name, "", shard.size, -1))
    return members


def _is_image(ending: str, wanted: str | None) -> bool:
    return ending == wanted if wanted else f".{ending.lower()}".endswith(EXTENSIONS)
