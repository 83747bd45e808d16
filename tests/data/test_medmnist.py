"""MedMNIST archives are read some images at a time, grey or colour, and nothing is unpickled."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polysem.data import medmnist
from polysem.data.arrays import ArrayData
from polysem.data.medmnist import CLASSES, load_medmnist
from polysem.errors import DataError, SpecError


def write(file: Path, *, rgb: bool = True, compressed: bool = True, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 7), ("val", 2), ("test", 3)):
        shape = (count, 5, 4, 3) if rgb else (count, 5, 4)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (count, 1), dtype=np.uint8)
    save = np.savez_compressed if compressed else np.savez
    save(file, **{**arrays, **changed})
    return file


def load(path: Path, **options: Any) -> ArrayData:
    return load_medmnist(path, name="spec", **options)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("rgb", [False, True])
def test_images_and_labels(
    tmp_path: Path, rgb: bool, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medmnist, "BLOCK_BYTES", 130)  # a few images a block
    file = write(tmp_path / "breastmnist_64.npz", rgb=rgb, compressed=compressed)
    with np.load(file) as arrays:
        for split in ("train", "val", "test"):
            data = load(file, split=split)
            images = arrays[f"{split}_images"]
            assert data.labels is not None
            assert data.labels.tolist() == arrays[f"{split}_labels"].ravel().tolist()
            for i in range(len(data)):
                expected = images[i] if rgb else np.repeat(images[i][:, :, None], 3, axis=2)
                np.testing.assert_array_equal(np.asarray(data.read(i)), expected)
    assert data.classes == ("malignant", "normal or benign")
    assert data.keys == ["test#000000", "test#000001", "test#000002"]
    assert len(load(file, split="all")) == 12
    assert pickle.loads(pickle.dumps(data)).read(1).size == (4, 5)


def test_packing_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    one = load(write(tmp_path / "a.npz"), split="test")
    two = load(write(tmp_path / "b.npz", compressed=False), split="test")
    assert one.fingerprint == two.fingerprint
    assert load(tmp_path / "a.npz", split="val").fingerprint != one.fingerprint


def test_class_names_only_where_they_are_known(tmp_path: Path) -> None:
    assert load(write(tmp_path / "mine.npz"), split="test").classes is None
    assert len(CLASSES["pathmnist"]) == 9
    assert len(CLASSES["organamnist"]) == 11


def test_a_split_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="splits train, val, test"):
        load(write(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test_images": np.zeros((3, 5, 4, 4), np.uint8)}, r"\[image, y, x\]"),
        ({"test_images": np.zeros((3, 5, 4), np.float32)}, "is float32"),
        ({"test_images": np.array([None] * 3)}, "pickled objects; nothing was run"),
        ({"test_images": np.asfortranarray(np.ones((3, 5, 4), np.uint8))}, "column by column"),
        ({"test_images": np.zeros((0, 5, 4), np.uint8), "test_labels": np.zeros(0, int)}, "no im"),
        ({"test_labels": np.zeros((3, 14), np.uint8)}, r"one label an image; add '\?label=none'"),
        ({"test_labels": np.zeros((2, 1), np.uint8)}, r"shape \(2, 1\) for 3 images"),
        ({"test_labels": np.zeros((3, 1))}, "not whole numbers"),
        ({"test_labels": np.full((3, 1), 2, np.uint8)}, "only 2 classes"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    file = write(tmp_path / "pneumoniamnist.npz", rgb=False, **changed)
    with pytest.raises(DataError, match=words):
        load(file, split="test")


def test_many_labels_an_image_can_be_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "chestmnist.npz", test_labels=np.zeros((3, 14), np.uint8))
    assert load(file, split="test", label="none").labels is None
    with pytest.raises(SpecError, match="can only be 'none'"):
        load(file, split="test", label="hernia")


def test_damage(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz")
    content = file.read_bytes()
    file.write_bytes(content[:300])
    with pytest.raises(DataError, match=r"cannot be read as an \.npz archive"):
        load(file, split="test")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(DataError, match="the archive has weights"):
        load(tmp_path / "other.npz")
    np.savez(tmp_path / "half.npz", test_images=np.zeros((3, 5, 4), np.uint8))
    with pytest.raises(DataError, match="no array 'test_labels'"):
        load(tmp_path / "half.npz", split="test")


def test_damage_found_later(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", rgb=True)
    data = load(file, split="train")
    content = bytearray(file.read_bytes())
    start = content.index(b"train_images.npy") + 200
    content[start : start + 100] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(DataError, match="'train_images' cannot be read"):
        data.read(0)


def repacked(file: Path, old: bytes, new: bytes) -> Path:
    """Return an archive with bytes replaced inside its members, their checksums right again."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name).replace(old, new) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"'shape': (3,", b"'shape': ((,", "header of the array 'test_images' is damaged"),
        (b"'shape': (3,", b"'shape': (-3", "header of the array|expected uint8"),
        (b"'shape': (3, 5", b"'shape': (3,-5", "header of the array|expected uint8"),
        (b"'shape': (3, ", b"'shape': (9999999999, ", "cannot come out of a file"),
    ],
)
def test_headers_that_lie(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    file = repacked(write(tmp_path / "a.npz"), old, new)
    with pytest.raises(DataError, match=message):
        load(file, split="test", label="none")
