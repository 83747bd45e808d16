"""MedMNIST archives (``pathmnist.npz``, ``dermamnist_224.npz`` …): small medical images, 2-D."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from polysem.data.arrays import ArrayData, Pixels
from polysem.data.blocks import BLOCK_BYTES, Block
from polysem.data.columns import NO_LABELS
from polysem.data.splits import choose_splits
from polysem.errors import DataError, SpecError

__all__ = ["CLASSES", "load_medmnist"]

_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver",
    "lung-left", "lung-right", "pancreas", "spleen",
)  # fmt: skip

#: Class names of the 2-D data sets with one label an image; the archives hold numbers only.
CLASSES: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
        "normal colon mucosa", "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
        "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    "breastmnist": ("malignant", "normal or benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast",
        "immature granulocyte (myelocyte, metamyelocyte or promyelocyte)", "lymphocyte",
        "monocyte", "neutrophil", "platelet",
    ),
    "tissuemnist": (
        "collecting duct or connecting tubule", "distal convoluted tubule",
        "glomerular endothelial cell", "interstitial endothelial cell", "leukocyte", "podocyte",
        "proximal tubule segment", "thick ascending limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}  # fmt: skip

#: Bytes that deflate can make of one, at most.
_MOST_INFLATED = 1032


@dataclass(frozen=True)
class _Array:
    """What the header of one array in the archive says."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


@dataclass(frozen=True)
class _Blocks:
    """Reads arrays of the archive for `BlockReader`, some `BLOCK_BYTES` at a time."""

    path: Path
    arrays: tuple[_Array, ...]

    def __call__(self, part: int) -> Generator[Block[Pixels], None, None]:
        array = self.arrays[part]
        row_bytes = math.prod(array.shape[1:])
        step = max(1, BLOCK_BYTES // row_bytes)
        with _member(self.path, array.name) as file:
            _header(file, array.name)
            for first in range(0, array.shape[0], step):
                count = min(step, array.shape[0] - first)
                content = file.read(count * row_bytes)
                if len(content) < count * row_bytes:
                    raise DataError(f"{self.path}: the array {array.name!r} is cut short")
                rows = np.frombuffer(content, dtype=np.uint8).reshape(count, *array.shape[1:])
                yield Block(rows, count, rows.nbytes)


def load_medmnist(
    path: Path, *, name: str, split: str | None = None, label: str | None = None
) -> ArrayData:
    """Read a 2-D MedMNIST archive, or any ``.npz`` with ``SPLIT_images`` and ``SPLIT_labels``.

    Images are read some at a time, never a whole array; nothing pickled is accepted. In order
    this is fast; the archives are compressed, so shuffled reading of one that is larger than the
    cache (`blocks.CACHE_BYTES`) unpacks it again and again. Class names come from the file name
    (`CLASSES`); keys are ``SPLIT#NUMBER``.

    Parameters
    ----------
    path : Path
        The archive.
    name : str
        The spec, for messages.
    split : str, optional
        ``train``, ``val`` or ``test``; has to be named, or ``all``.
    label : str, optional
        ``none`` leaves labels out; needed for ChestMNIST, which has 14 labels an image.

    Raises
    ------
    DataError
        If the archive is damaged, or its arrays are no images or do not fit together.
    SpecError
        If the split is unknown or not named.
    """
    if label not in (None, NO_LABELS):
        raise SpecError(f"{name}: 'label' of a MedMNIST archive can only be '{NO_LABELS}'")
    splits = choose_splits(name, _splits(path, name=name), split)
    arrays = tuple(_image_array(path, f"{split}_images", name=name) for split in splits)
    counts = [array.shape[0] for array in arrays]
    if label == NO_LABELS:
        labels = None
    else:
        labels = np.concatenate(
            [_labels(path, split, n, name=name) for split, n in zip(splits, counts, strict=True)]
        )
    keys = [
        f"{split}#{number:06d}"
        for split, count in zip(splits, counts, strict=True)
        for number in range(count)
    ]
    if not keys:
        raise DataError(f"{name}: the archive holds no images")
    classes = CLASSES.get(path.stem.lower().split("_")[0])
    return ArrayData(
        name,
        keys,
        counts=counts,
        open_part=_Blocks(path.absolute(), arrays),
        labels=labels,
        classes=classes,
    )


def _splits(path: Path, *, name: str) -> Sequence[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{name}: {path} cannot be read as an .npz archive: {error}") from None
    found = [n.removesuffix("_images.npy") for n in names if n.endswith("_images.npy")]
    if not found:
        inside = ", ".join(n.removesuffix(".npy") for n in names[:6]) or "nothing"
        raise DataError(f"{name}: expected arrays called train_images …; the archive has {inside}")
    return found


def _image_array(path: Path, array: str, *, name: str) -> _Array:
    with _member(path, array) as file:
        found = _header(file, array)
    rgb = len(found.shape) == 4 and found.shape[3] == 3
    sizes_fit = found.shape[0] >= 0 and all(side > 0 for side in found.shape[1:])
    if not (len(found.shape) == 3 or rgb) or found.dtype != np.uint8 or not sizes_fit:
        raise DataError(
            f"{name}: the array {array!r} is {found.dtype} of shape {found.shape}; expected uint8 "
            "[image, y, x] or [image, y, x, 3] (volumes are not supported)"
        )
    if math.prod(found.shape) > _MOST_INFLATED * path.stat().st_size:
        raise DataError(
            f"{name}: the array {array!r} claims the shape {found.shape}, which cannot come out "
            f"of a file of {path.stat().st_size:,} bytes"
        )
    return found


def _labels(path: Path, split: str, count: int, *, name: str) -> npt.NDArray[np.int64]:
    array = f"{split}_labels"
    with _member(path, array) as file:
        header = _header(file, array)
        if header.shape not in ((count,), (count, 1)):
            raise DataError(
                f"{name}: the array {array!r} has shape {header.shape} for {count} images; "
                f"expected one label an image; add '?label={NO_LABELS}' to the spec to leave "
                "labels out"
            )
        if header.dtype.kind not in "iu":
            raise DataError(f"{name}: the array {array!r} is {header.dtype}, not whole numbers")
        # one byte more than there should be: an archive must not say how much memory we take
        content = file.read(count * header.dtype.itemsize + 1)
    if len(content) != count * header.dtype.itemsize:
        raise DataError(f"{name}: the array {array!r} is cut short")
    return np.frombuffer(content, dtype=header.dtype).astype(np.int64)


@contextmanager
def _member(path: Path, array: str) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as file:
            yield file
    except KeyError:
        raise DataError(f"{path} has no array {array!r}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: the array {array!r} cannot be read: {error}") from None


def _header(file: IO[bytes], array: str) -> _Array:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        raise  # of the archive, which `_member` puts in words
    except Exception as error:  # numpy reads the header as Python: its tokeniser's errors too
        raise DataError(f"the header of the array {array!r} is damaged: {error}") from None
    if dtype.hasobject:
        raise DataError(f"the array {array!r} holds pickled objects; nothing was run")
    if fortran and len(shape) > 1:
        raise DataError(f"the array {array!r} is stored column by column; save it in C order")
    return _Array(array, tuple(shape), dtype)
