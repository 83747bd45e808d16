"""Image files in folders: class subfolders, or one flat heap without labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from PIL import Image

from polysem.data.dataset import ImageData
from polysem.data.decode import decode_image
from polysem.data.fingerprint import data_sha256, file_chunks
from polysem.data.splits import choose_splits, is_split
from polysem.errors import DataError, ImageError, MissingError

__all__ = ["EXTENSIONS", "FileData", "image_files", "load_folder"]

#: File name endings, in any case, that are taken for images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_FILES_HASHED = 256

_log = logging.getLogger(__name__)


class FileData(ImageData):
    """One file per image.

    Parameters
    ----------
    name, keys, labels, classes
        As in `ImageData`.
    root : Path
        Folder that `files` are relative to.
    files : sequence of str
        Where each image lies, with ``/`` between folders.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, keys, labels=labels, classes=classes)
        self.root = root.absolute()
        self.files = files

    def read(self, index: int) -> Image.Image:
        """Return image number `index`; see `decode_image` for how it is converted.

        Raises
        ------
        MissingError
            If the whole folder is gone, as when a drive is taken away.
        """
        try:
            return decode_image(self.root / self.files[index], key=self.keys[index])
        except ImageError:
            if not self.root.is_dir():
                raise MissingError(
                    f"{self.root} was there when the data was opened but is gone"
                ) from None
            raise

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all keys, labels and file sizes, and of 256 evenly spaced files' bytes.

        Not of every byte: reading a million photographs before a probe may start would take as
        long as the probe. An edit that keeps a file's size can escape; an image added, removed,
        renamed or relabelled cannot.
        """
        return data_sha256(self, self._content())

    def _content(self) -> Iterator[bytes]:
        for file in self.files:
            try:
                yield b"%d\n" % (self.root / file).stat().st_size
            except OSError:
                raise MissingError(
                    f"{self.root / file} was there when the data was opened but is gone"
                ) from None
        count, taken = len(self.files), min(_FILES_HASHED, len(self.files))
        yield from file_chunks(self.root / self.files[i * count // taken] for i in range(taken))


def load_folder(
    path: Path, *, name: str, split: str | None = None, label: str | None = None
) -> FileData:
    """Read a folder of images; the first subfolder of a file is its class.

    Classes are all subfolders in sorted order, empty ones included, so that an index means the
    same in train and test. Files beside no subfolder at all have no labels. Keys are paths
    relative to `path`. Hidden files, hidden folders and files that are not images by their name
    (`EXTENSIONS`) are left out; symbolic links are followed.

    Parameters
    ----------
    path : Path
        The folder.
    name : str
        The spec, for messages.
    split : str, optional
        A subfolder such as ``train`` in which to look.
    label : str, optional
        ``none`` leaves labels out, whatever the folders are.

    Raises
    ------
    DataError
        If there are no images; or images lie both beside class folders and in them.
    SpecError
        If the folder is divided into splits and none, or an unknown one, was chosen.
    """
    inside = _subfolders(path)
    if split is not None or (inside and all(map(is_split, inside))):
        splits = choose_splits(name, filter(is_split, inside), split)
        if len(splits) > 1:
            raise DataError(
                f"{name}: an image folder is read one split at a time; name one of "
                f"{', '.join(splits)}"
            )
        path = path / splits[0]
        inside = _subfolders(path)
    files = sorted(image_files(path))
    if not files:
        within = f" and its {len(inside)} folders" if inside else ""
        below = islice((file for file in path.rglob("*.*") if file.is_file()), 1000)
        others = ", ".join(sorted({file.suffix for file in below})[:5])
        instead = f"only {others}" if others else "no other files either"
        raise DataError(
            f"{name}: no image files ({', '.join(EXTENSIONS)}) in {path}{within}, {instead}"
        )
    loose = [file for file in files if "/" not in file]
    if label == "none" or len(loose) == len(files):
        return FileData(name, files, root=path, files=files)
    if loose:
        raise DataError(
            f"{name}: {len(loose)} images such as {loose[0]!r} lie beside {len(inside)} class "
            f"folders such as {inside[0]!r}; move them into a folder of their class, or "
            "add '?label=none' to the spec to leave labels out"
        )
    number = {folder: i for i, folder in enumerate(inside)}
    labels = [number[file.split("/", 1)[0]] for file in files]
    if empty := set(range(len(inside))) - set(labels):
        _log.warning(
            "%s: no images in class folder %s", name, ", ".join(inside[i] for i in sorted(empty))
        )
    return FileData(name, files, root=path, files=files, labels=labels, classes=inside)


def image_files(root: Path) -> Iterator[str]:
    """Yield the image files below a folder as paths relative to it, with ``/``; in no set order.

    Raises
    ------
    DataError
        If a folder cannot be read, or a file name is not valid UTF-8 (and so cannot be a key).
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            stat = os.stat(root / folder)
            here = (stat.st_dev, stat.st_ino)
            if here in above:  # a link back to a folder that holds it
                continue
            with os.scandir(root / folder) as listing:
                entries = list(listing)
        except OSError as error:
            raise DataError(
                f"folder {root / folder} cannot be read: {error.strerror or error}"
            ) from None
        for entry in entries:
            if _hidden(entry.name):
                continue
            if entry.is_dir():
                waiting.append((f"{folder}{entry.name}/", above | {here}))
            elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                yield _utf8(f"{folder}{entry.name}")


def _utf8(file: str) -> str:
    try:
        file.encode()
    except UnicodeEncodeError:
        shown = file.encode(errors="backslashreplace").decode()
        raise DataError(f"the file name {shown!r} is not valid UTF-8; rename it") from None
    return file


def _subfolders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as listing:
            return sorted(_utf8(e.name) for e in listing if e.is_dir() and not _hidden(e.name))
    except OSError as error:
        raise DataError(f"folder {path} cannot be read: {error.strerror or error}") from None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
