"""CIFAR-10 and CIFAR-100 as published: pickled or binary version, unpacked or as .tar.gz."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from einops import rearrange

from polysem.data.arrays import ArrayData, Pixels
from polysem.data.blocks import Block
from polysem.data.columns import NO_LABELS
from polysem.data.safe_pickle import read_pickled_dict
from polysem.data.splits import choose_splits
from polysem.errors import DataError, SpecError, did_you_mean

__all__ = ["ARCHIVES", "find_cifar", "load_cifar"]

#: File name endings of archives that are looked into.
ARCHIVES = (".tar.gz", ".tgz", ".tar")

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
# The largest published member is CIFAR-100's train file, 155 MB; no archive may ask for much more.
_MAX_MEMBER_BYTES = 400_000_000


@dataclass(frozen=True)
class _Layout:
    """How one version is laid out.

    `labels` names the kinds of label, the default first: for pickles their key in a batch, for
    binary files (key empty) in the order of the leading bytes; `names` says where class names
    are, as a file and the key in it (empty: a text file, one name a line).
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: dict[str, str]
    names: dict[str, tuple[str, str]]

    @property
    def files(self) -> set[str]:
        return {*self.train, *self.test, *(file for file, _ in self.names.values())}

    @property
    def binary(self) -> bool:
        return self.test[0].endswith(".bin")


_LAYOUTS = (
    _Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        {"label": "labels"},
        {"label": ("batches.meta", "label_names")},
    ),
    _Layout(
        "cifar-100-python",
        ("train",),
        ("test",),
        {"fine": "fine_labels", "coarse": "coarse_labels"},
        {"fine": ("meta", "fine_label_names"), "coarse": ("meta", "coarse_label_names")},
    ),
    _Layout(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        {"label": ""},
        {"label": ("batches.meta.txt", "")},
    ),
    _Layout(
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        {"coarse": "", "fine": ""},
        {"fine": ("fine_label_names.txt", ""), "coarse": ("coarse_label_names.txt", "")},
    ),
)


def find_cifar(path: Path) -> Path | None:
    """Return where CIFAR lies: `path` itself, the folder in it as published, or None."""
    folders = [path / layout.folder for layout in _LAYOUTS] if path.is_dir() else []
    return next((p for p in (path, *folders) if p.exists() and _layout(p)), None)


def load_cifar(
    path: Path,
    *,
    name: str,
    split: str | None = None,
    label: str | None = None,
    of_classes: Literal[10, 100] | None = None,
) -> ArrayData:
    """Read CIFAR-10 or CIFAR-100 from a folder or tar archive as published.

    Nothing in the pickles of the python version is run (see `safe_pickle`). Keys are
    ``SPLIT#NUMBER``, the same for all versions of one data set.

    Parameters
    ----------
    path : Path
        The folder, one that contains it, or the archive.
    name : str
        The spec, for messages.
    split : str, optional
        ``train`` or ``test``; has to be named, or ``all``.
    label : str, optional
        CIFAR-100 only: ``fine`` (default) or ``coarse``; ``none`` leaves labels out.
    of_classes : 10 or 100, optional
        Which of the two is expected.

    Raises
    ------
    DataError
        If files are missing or damaged, or hold anything but CIFAR.
    SpecError
        If the split or the kind of label is unknown.
    """
    root = find_cifar(path.absolute())
    layout = _layout(root) if root else None
    if root is None or layout is None or (of_classes and f"-{of_classes}-" not in layout.folder):
        folders = ", ".join(layout.folder for layout in _LAYOUTS)
        raise DataError(f"{name}: {path} is not CIFAR as published ({folders})")
    kinds = tuple(layout.names)
    if label not in (None, NO_LABELS, *kinds):
        near = did_you_mean(str(label), kinds)
        raise SpecError(f"{name}: {layout.folder} has no label {label!r}{near}")
    kind = label if label in kinds else kinds[0]
    of_split = {"train": layout.train, "test": layout.test}
    splits = choose_splits(name, of_split, split)
    files = tuple(file for split in splits for file in of_split[split])
    names_file, names_key = layout.names[kind]
    labels: dict[str, npt.NDArray[np.int64]] = {}
    names: list[str] = []
    for file, content in _contents(root, (names_file, *files)):
        if file == names_file:
            names = _class_names(content, names_key, where=f"{root}/{file}")
        else:
            labels[file] = _batch(content, layout, kind, where=f"{root}/{file}")[1]
    counts = {split: sum(len(labels[file]) for file in of_split[split]) for split in splits}
    return ArrayData(
        name,
        [f"{split}#{number:05d}" for split in splits for number in range(counts[split])],
        counts=[len(labels[file]) for file in files],
        open_part=_Batches(root, layout, files),
        labels=None if label == NO_LABELS else np.concatenate([labels[file] for file in files]),
        classes=names,
    )


@dataclass(frozen=True)
class _Batches:
    """Reads batch files for `BlockReader`, one block each."""

    root: Path
    layout: _Layout
    files: tuple[str, ...]

    def __call__(self, part: int) -> Generator[Block[Pixels], None, None]:
        file = self.files[part]
        kind = next(iter(self.layout.names))
        for _, content in _contents(self.root, (file,)):
            pixels, _ = _batch(content, self.layout, kind, where=f"{self.root}/{file}")
            yield Block(pixels, len(pixels), pixels.nbytes)


def _layout(root: Path) -> _Layout | None:
    """Return the version whose class names and images (some of them, at least) are in a place."""
    if root.is_dir():
        known = {file for layout in _LAYOUTS for file in layout.files}
        present = {file for file in known if (root / file).is_file()}
    elif root.name.lower().endswith(ARCHIVES):
        with _opened(root) as archive:
            present = {PurePosixPath(member.name).name for member in archive if member.isfile()}
    else:
        return None
    for layout in _LAYOUTS:
        names = {file for file, _ in layout.names.values()}
        if names <= present and present & {*layout.train, *layout.test}:
            return layout
    return None


def _contents(root: Path, files: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the content of each file: from a folder, or from an archive in one pass over it."""
    missing = set(files)
    if root.is_dir():
        for file in files:
            if (root / file).is_file():
                yield file, (root / file).read_bytes()
                missing.remove(file)
    else:
        with _opened(root) as archive:
            for member in archive:
                file = PurePosixPath(member.name).name
                if file not in missing or not member.isfile():
                    continue
                if member.size > _MAX_MEMBER_BYTES:
                    raise DataError(f"{root}: {file} claims {member.size} bytes; CIFAR has less")
                packed = archive.extractfile(member)
                yield file, packed.read() if packed else b""
                missing.remove(file)
                if not missing:
                    break
    if missing:
        raise DataError(f"{root} lacks {', '.join(sorted(missing))}")


@contextmanager
def _opened(root: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(root) as archive:
            yield archive
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"the archive {root} cannot be read: {error}") from None


def _batch(
    content: bytes, layout: _Layout, kind: str, *, where: str
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Return pixels [image, y, x, 3] and labels [image] of one batch file."""
    if layout.binary:
        kinds = list(layout.labels)
        width = len(kinds) + _PIXELS
        if not content or len(content) % width:
            raise DataError(f"{where} has {len(content)} bytes, not a multiple of {width}")
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
        flat: Any = rows[:, len(kinds) :]
        labels = rows[:, kinds.index(kind)].astype(np.int64)
    else:
        batch = read_pickled_dict(content, where=where)
        flat, given = batch.get("data"), batch.get(layout.labels[kind])
        if not isinstance(flat, np.ndarray) or flat.ndim != 2 or flat.shape[1] != _PIXELS:
            raise DataError(f"{where} holds no array 'data' of {_PIXELS} bytes an image")
        if not isinstance(given, list) or not all(isinstance(x, int) for x in given):
            raise DataError(f"{where} holds no list {layout.labels[kind]!r} of class numbers")
        labels = np.array(given, dtype=np.int64)
    if len(labels) != len(flat):
        raise DataError(f"{where} has {len(flat)} images but {len(labels)} labels")
    pixels = rearrange(flat, "image (c y x) -> image y x c", c=3, y=_SIDE)
    return np.ascontiguousarray(pixels), labels


def _class_names(content: bytes, key: str, *, where: str) -> list[str]:
    try:
        if not key:
            return [line for line in content.decode().splitlines() if line.strip()]
        names = read_pickled_dict(content, where=where).get(key)
        if isinstance(names, list):
            return [n.decode() if isinstance(n, bytes) else str(n) for n in names]
    except UnicodeDecodeError:
        pass
    raise DataError(f"{where} holds no class names")
