"""CIFAR in its four published layouts gives the same images under the same keys."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polysem.data.arrays import ArrayData
from polysem.data.cifar import find_cifar, load_cifar
from polysem.errors import DataError, SpecError

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


def batch(seed: int, count: int = 3) -> tuple[np.ndarray[Any, Any], list[int]]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return images, rng.integers(0, 10, count).tolist()


def python_10(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, file in enumerate([*TRAIN, "test_batch"]):
        images, labels = batch(seed, 3 + seed)
        content = {b"data": images, b"labels": labels, b"batch_label": b"x", b"filenames": []}
        (folder / file).write_bytes(pickle.dumps(content, 2))
    names = {b"label_names": [name.encode() for name in TEN], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, 2))
    (folder / "readme.html").touch()
    return folder


def binary_10(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, file in enumerate([*TRAIN, "test_batch"]):
        images, labels = batch(seed, 3 + seed)
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)
        (folder / f"{file}.bin").write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    return folder


def hundred(folder: Path, *, binary: bool) -> Path:
    folder.mkdir(parents=True)
    names = {"coarse": ["fish", "flowers"], "fine": [f"kind {i}" for i in range(10)]}
    for seed, split in enumerate(("train", "test")):
        images, fine = batch(seed, 4)
        coarse = [label // 5 for label in fine]
        if binary:
            rows = np.concatenate([np.array([coarse, fine], np.uint8).T, images], axis=1)
            (folder / f"{split}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"data": images, b"fine_labels": fine, b"coarse_labels": coarse}
            (folder / split).write_bytes(pickle.dumps(content, 2))
    if binary:
        for kind, words in names.items():
            (folder / f"{kind}_label_names.txt").write_text("\n".join(words))
    else:
        meta = {f"{k}_label_names".encode(): [w.encode() for w in v] for k, v in names.items()}
        (folder / "meta").write_bytes(pickle.dumps(meta, 2))
    return folder


def archived(folder: Path) -> Path:
    archive = folder.parent / f"{folder.name}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(folder.iterdir(), reverse=True):  # not in the order of reading
            tar.add(file, f"{folder.name}/{file.name}")
    return archive


def load(path: Path, **options: Any) -> ArrayData:
    return load_cifar(path, name="spec", **options)


def test_pixels_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    data = load(python_10(tmp_path / "cifar-10-batches-py"), split="train")
    assert len(data) == 3 + 4 + 5 + 6 + 7
    assert data.keys[:2] == ["train#00000", "train#00001"]
    assert data.classes == TEN
    images, labels = batch(1, 4)  # the second file
    assert data.labels is not None
    assert data.labels[3:7].tolist() == labels
    for number in range(4):
        got = np.asarray(data.read(3 + number))
        for channel in range(3):
            for y in (0, 31):
                start = channel * 1024 + y * 32
                np.testing.assert_array_equal(
                    got[y, :, channel], images[number, start : start + 32]
                )


def test_all_versions_agree(tmp_path: Path) -> None:
    folders = [python_10(tmp_path / "py/cifar-10-batches-py")]
    folders += [binary_10(tmp_path / "bin/cifar-10-batches-bin")]
    places = [*folders, *map(archived, folders), tmp_path / "py", tmp_path / "bin"]
    loaded = [load(place, split="all") for place in places]
    assert len({data.fingerprint for data in loaded}) == 1
    assert loaded[0].keys[-1] == "test#00007"
    pictures = {np.asarray(data.read(30)).tobytes() for data in loaded}
    assert len(pictures) == 1


@pytest.mark.parametrize("binary", [False, True])
def test_cifar_100_has_two_kinds_of_label(tmp_path: Path, binary: bool) -> None:
    folder = hundred(tmp_path / "cifar-100", binary=binary)
    fine, coarse = load(folder, split="test"), load(folder, split="test", label="coarse")
    assert fine.labels is not None
    assert coarse.labels is not None
    assert fine.labels.tolist() == batch(1, 4)[1]
    assert coarse.labels.tolist() == [label // 5 for label in fine.labels]
    assert fine.classes is not None
    assert fine.classes[3] == "kind 3"
    assert coarse.classes == ("fish", "flowers")
    np.testing.assert_array_equal(
        np.asarray(fine.read(2)).transpose(2, 0, 1).ravel(), batch(1, 4)[0][2]
    )
    assert load(folder, split="test", label="none").labels is None
    with pytest.raises(SpecError, match="did you mean 'coarse'"):
        load(folder, split="test", label="corse")


def test_a_split_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"splits train, test; add '\?split=test'"):
        load(python_10(tmp_path / "c"))


def test_what_is_not_cifar(tmp_path: Path) -> None:
    assert find_cifar(tmp_path) is None
    with pytest.raises(DataError, match="is not CIFAR as published"):
        load(tmp_path)
    folder = python_10(tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataError, match="is not CIFAR as published"):
        load(folder, split="test", of_classes=100)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    folder = python_10(tmp_path / "c")
    archive = archived(folder)
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="lacks data_batch_4"):
        load(folder, split="train")
    (folder / "test_batch").write_bytes(pickle.dumps({"labels": [1]}))
    with pytest.raises(DataError, match="no array 'data' of 3072 bytes"):
        load(folder, split="test")
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"archive .* cannot be read"):
        load(archive, split="train")
    binary = binary_10(tmp_path / "b")
    (binary / "test_batch.bin").write_bytes(bytes(3000))
    with pytest.raises(DataError, match="3000 bytes, not a multiple of 3073"):
        load(binary, split="test")


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    folder = python_10(tmp_path / "c")
    images, labels = batch(0)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images, "labels": labels[:2]}))
    with pytest.raises(DataError, match="3 images but 2 labels"):
        load(folder, split="test")
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images, "labels": [0, 99, 0]}))
    with pytest.raises(DataError, match="'test#00001' has the label 99"):
        load(folder, split="test")


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder, trap = python_10(tmp_path / "c"), tmp_path / "ran"
    (folder / "test_batch").write_bytes(b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR.")
    with pytest.raises(DataError, match=r"test_batch .* a call of os\.system; nothing was run"):
        load(folder, split="test")
    assert not trap.exists()


def test_an_archive_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archived(python_10(tmp_path / "c"))
    monkeypatch.setattr("polysem.data.cifar._MAX_MEMBER_BYTES", 5000)
    with pytest.raises(DataError, match=r"claims .* bytes; CIFAR has less"):
        load(archive, split="test")


def test_copies_read_on(tmp_path: Path) -> None:
    data = load(archived(python_10(tmp_path / "c")), split="test")
    first = data.read(0).tobytes()
    copy = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 5000
    assert copy.read(0).tobytes() == first
