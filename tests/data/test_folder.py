"""Folders of images, as people really have them."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from pathlib import Path

import pytest
from PIL import Image

from polysem.data.folder import EXTENSIONS, FileData, load_folder
from polysem.errors import DataError, ImageError, MissingError, SpecError


def draw(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), colour).save(path, "PNG")


def load(path: Path, **options: str) -> FileData:
    return load_folder(path, name="spec", **options)


def test_class_folders(tmp_path: Path) -> None:
    for file in ("dog/b.png", "cat/z.png", "dog/sub/a.png", "ape/c.JPG"):
        draw(tmp_path / file)
    data = load(tmp_path)
    assert data.keys == ["ape/c.JPG", "cat/z.png", "dog/b.png", "dog/sub/a.png"]
    assert data.classes == ("ape", "cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 2]
    assert data.read(2).getpixel((0, 0)) == (255, 0, 0)
    assert load(tmp_path, label="none").labels is None


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for ending in EXTENSIONS:
        draw(tmp_path / f"a{ending}")
    (tmp_path / "notes").mkdir()
    data = load(tmp_path)
    assert (len(data), data.labels, data.classes) == (len(EXTENSIONS), None, None)


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    draw(tmp_path / "a/1.png")
    for file in (".hidden/1.png", "a/.1.png", "a/._1.png", "__MACOSX/a/1.png", "a/1.txt", "a/png"):
        draw(tmp_path / file)
    assert load(tmp_path).keys == ["a/1.png"]
    assert load(tmp_path).classes == ("a",)


def test_empty_class_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "c/1.png")
    (tmp_path / "b").mkdir()
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path)
    assert data.classes == ("b", "c")
    assert data.labels is not None
    assert data.labels.tolist() == [1]
    assert "no images in class folder b" in caplog.text


def test_mixed_layout_is_explained(tmp_path: Path) -> None:
    draw(tmp_path / "1.png")
    draw(tmp_path / "cat/2.png")
    with pytest.raises(DataError, match=r"1 images such as '1.png' lie beside 1 class folders"):
        load(tmp_path)
    assert len(load(tmp_path, label="none")) == 2


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image files .* no other files either"):
        load(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.heic").touch()
    with pytest.raises(DataError, match=r"and its 1 folders, only \.heic"):
        load(tmp_path)


def test_splits_are_chosen_not_mistaken_for_classes(tmp_path: Path) -> None:
    draw(tmp_path / "train/cat/1.png")
    draw(tmp_path / "val/cat/2.png")
    with pytest.raises(SpecError, match="has the splits train, val"):
        load(tmp_path)
    assert load(tmp_path, split="validation").keys == ["cat/2.png"]
    with pytest.raises(DataError, match="one split at a time"):
        load(tmp_path, split="all")
    with pytest.raises(SpecError, match="not divided into splits"):
        load(tmp_path / "train", split="val")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    draw(tmp_path / "store/1.png")
    data = tmp_path / "data"
    (data / "cat").mkdir(parents=True)
    (data / "cat/again").symlink_to(data)
    for name in ("dog", "fox"):
        (data / name).symlink_to(tmp_path / "store")
    (data / "cat/broken.png").symlink_to(tmp_path / "gone")
    os.mkfifo(data / "cat/pipe.png")
    assert load(data).keys == ["dog/1.png", "fox/1.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.png", os.O_CREAT))
    with pytest.raises(DataError, match=r"'\\\\udcff.png' is not valid UTF-8; rename it"):
        load(tmp_path)


def test_an_image_that_vanishes(tmp_path: Path) -> None:
    draw(tmp_path / "1.png")
    data = load(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(ImageError, match=r"'1\.png' cannot be read: the file is not there"):
        data.read(0)
    with pytest.raises(MissingError, match="gone"):
        _ = data.fingerprint


def test_a_copy_reads_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a/1.png")
    monkeypatch.chdir(tmp_path)
    data = pickle.loads(pickle.dumps(load(Path("."))))
    monkeypatch.chdir("/")
    assert data[0].size == (3, 2)


def test_fingerprint_follows_names_sizes_and_bytes(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / f"a/{number:03}.png").write_bytes(b"12")
    first = load(tmp_path).fingerprint
    assert load(tmp_path).fingerprint == first
    (tmp_path / "a/000.png").write_bytes(b"13")
    changed = load(tmp_path).fingerprint
    (tmp_path / "a/001.png").write_bytes(b"123")
    longer = load(tmp_path).fingerprint
    (tmp_path / "a/299.png").rename(tmp_path / "a/300.png")
    renamed = load(tmp_path).fingerprint
    assert len({first, changed, longer, renamed}) == 4
