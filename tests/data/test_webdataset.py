"""Tar shards wherever they lie: on the disk, behind an address, cut off, or badly named."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from polysem.data import webdataset
from polysem.data.shards import Shard, expand_braces, find_shards
from polysem.data.sources import load_data
from polysem.data.webdataset import WebDataset, load_webdataset
from polysem.errors import DataError, ImageError, MissingError, SpecError


def png(shade: int, size: int = 3) -> bytes:
    file = io.BytesIO()
    Image.new("L", (size, 2), shade).save(file, "PNG")
    return file.getvalue()


def tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def samples(shades: range, *, labels: bool = True) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shade in shades:
        found[f"{shade:04d}.png"] = png(shade)
        if labels:
            found[f"{shade:04d}.cls"] = str(shade % 3).encode()
        found[f"{shade:04d}.json"] = b"{}"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        shades = range(number * 10, number * 10 + 7)
        (tmp_path / f"train-{number:03d}.tar").write_bytes(tar(samples(shades)))
    return tmp_path


def shades(data: Any) -> list[Any]:
    return [data.read(i).getpixel((0, 0))[0] for i in range(len(data))]


EXPECTED = [shade for start in (0, 10, 20) for shade in range(start, start + 7)]


@pytest.fixture
def memory(folder: Path) -> str:
    """The same shards in a store that is not the disk."""
    fs = fsspec.filesystem("memory")
    for file in folder.glob("*.tar"):
        fs.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    return "memory://bucket/train-{000..002}.tar"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_way_to_name_shards_finds_them(folder: Path, memory: str) -> None:
    for spec in (
        str(folder), f"{folder}/train-{{000..002}}.tar", f"webdataset:{folder}/*.tar",
        f"file://{folder}/train-{{000,001,002}}.tar", memory, f"webdataset:{memory}",
    ):  # fmt: skip
        data = load_data(spec)
        assert isinstance(data, WebDataset)
        assert shades(data) == EXPECTED
        assert data.keys[8] == "0011.png"
        assert data.labels is not None
        assert data.labels.tolist() == [shade % 3 for shade in EXPECTED]
    assert shades(load_data(str(folder / "train-001.tar"))) == EXPECTED[7:14]


def test_images_are_read_in_any_order_and_by_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "BLOCK_BYTES", 4000)  # two samples or so
    data = load_webdataset(folder, name="spec")
    order = np.random.default_rng(0).permutation(len(data))
    assert [data.read(int(i)).getpixel((0, 0))[0] for i in order] == [EXPECTED[i] for i in order]  # type: ignore[index]
    assert shades(pickle.loads(pickle.dumps(data))) == EXPECTED


def test_reading_in_order_reads_each_byte_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "BLOCK_BYTES", 4000)
    data = load_webdataset(folder, name="spec")
    read, bytes_read = Shard.read, []

    def counted(self: Shard, start: int, stop: int) -> bytes:
        bytes_read.append((self.name, start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(Shard, "read", counted)
    assert shades(data) == EXPECTED
    assert len(bytes_read) > 3
    assert bytes_read == sorted(bytes_read)
    for (name, _, stop), (after, start, _) in pairwise(bytes_read):
        assert name != after or start >= stop


def test_the_fingerprint_tells_shards_apart(folder: Path) -> None:
    before = load_webdataset(folder, name="a").fingerprint
    assert load_webdataset(f"{folder}/*.tar", name="b").fingerprint == before
    assert load_webdataset(folder, name="c", label="none").fingerprint != before
    (folder / "train-001.tar").write_bytes(tar(samples(range(10, 17)) | {"0010.png": png(99)}))
    assert load_webdataset(folder, name="d").fingerprint != before


def test_what_a_store_holds_is_listed_once(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polysem.data.shards._version", lambda fs, info: "etag", raising=True)
    first = load_data(memory)
    monkeypatch.setattr(webdataset, "_listed", None)
    again = load_data(memory)
    assert again.keys == first.keys
    assert again.fingerprint == first.fingerprint
    assert shades(again) == EXPECTED


def test_damage_is_left_out_and_named(folder: Path) -> None:
    content = (folder / "train-001.tar").read_bytes()
    (folder / "train-001.tar").write_bytes(content[: len(content) // 2])
    (folder / "train-002.tar").write_bytes(b"no tar file at all" * 99)
    samples_ = samples(range(30, 33)) | {"0031.png": b"broken"}
    (folder / "train-003.tar").write_bytes(tar(samples_))
    data = load_webdataset(folder, name="spec")
    read, skipped = [], []
    for i in range(len(data)):
        try:
            read.append(data.read(i).getpixel((0, 0))[0])  # type: ignore[index]
        except ImageError as error:
            skipped.append((error.key, error.reason))
    assert read[:7] == list(range(7))
    assert read[-2:] == [30, 32]
    assert set(read[7:-2]) < set(range(10, 17))
    told = dict(skipped)
    assert "damaged from here on" in told["train-001.tar"]
    assert "damaged from here on" in told["train-002.tar"]
    assert "text, not an image" in told["0031.png"]


def test_names_counted_anew_in_every_shard_get_the_shards_name(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(tar(samples(range(2), labels=False)))
    data = load_webdataset(tmp_path, name="spec")
    assert data.keys == ["0.tar/0000.png", "0.tar/0001.png", "1.tar/0000.png", "1.tar/0001.png"]
    assert data.labels is None


def test_words_are_classes_and_columns_can_be_named(tmp_path: Path) -> None:
    members = {"a/x.seg.png": png(1), "a/x.jpg": png(2), "a/x.name": b"cat\n", "b.jpg": png(3),
               "b.name": b"dog"}  # fmt: skip
    (tmp_path / "0.tar").write_bytes(tar(members))
    data = load_webdataset(tmp_path, name="spec", image="jpg", label="name")
    assert data.keys == ["a/x.jpg", "b.jpg"]
    assert data.classes == ("cat", "dog")
    assert shades(data) == [2, 3]
    with pytest.raises(SpecError, match=r"no members \.jpq; did you mean 'jpg'"):
        load_webdataset(tmp_path, name="spec", image="jpq")
    with pytest.raises(SpecError, match=r"no sample has a member \.class"):
        load_webdataset(tmp_path, name="spec", label="class")


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("memory://nowhere/{0..2}.tar", MissingError, "no file memory://nowhere/0.tar"),
        ("nosuch://bucket/0.tar", SpecError, "nosuch"),
        ("memory://bucket/photos", SpecError, "does not say what lies there"),
        ("webdataset:memory://empty/*.tar", MissingError, "no files .tar at"),
    ],
)
def test_bad_addresses_are_one_sentence(spec: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        load_data(spec)


def test_no_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar({"a.txt": b"caption"}))
    with pytest.raises(DataError, match="no images in 1 tar files"):
        load_webdataset(tmp_path, name="spec")


def test_splits_are_told_by_names(folder: Path) -> None:
    (folder / "val-000.tar").write_bytes(tar(samples(range(50, 53))))
    with pytest.raises(SpecError, match="has the splits train, val"):
        load_data(str(folder))
    assert shades(load_data(f"{folder}?split=val")) == [50, 51, 52]


def test_braces_are_a_shells() -> None:
    assert expand_braces("a") == ["a"]
    assert expand_braces("{x,y}{1..2}") == ["x1", "x2", "y1", "y2"]
    assert expand_braces("{098..101}.tar")[-1] == "101.tar"


def test_shards_that_vanish(folder: Path) -> None:
    data = load_webdataset(folder, name="spec")
    (folder / "train-000.tar").unlink()
    with pytest.raises(MissingError, match=r"no file .*train-000\.tar"):
        data.read(0)
    assert len(find_shards(str(folder), (".tar",))) == 2
