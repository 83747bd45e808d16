"""Hub data sets: the real loader on local repositories, and clear words when it fails."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from polysem.data.hub import HubData, load_hub
from polysem.errors import DataError, ImageError, MissingError, SpecError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def repository(folder: Path, *, paths: bool = True, **splits: list[int]) -> str:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    for split, shades in splits.items():
        images = [
            {"bytes": png(shade), "path": f"{shade}.png" if paths else None} for shade in shades
        ]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table({"image": pa.array(images, kind), "label": [s % 2 for s in shades]})
        told = {"huggingface": json.dumps({"info": {"features": features}})}
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table.replace_schema_metadata(told), folder / f"{split}-00000-of-00001.parquet"
        )
    return str(folder)


def load(where: str, **options: Any) -> HubData:
    return load_hub(where, name="spec", **options)


def test_a_repository(tmp_path: Path) -> None:
    where = repository(tmp_path / "r", train=[1, 2], test=[3, 4, 5])
    with pytest.raises(SpecError, match="has the splits train, test"):
        load(where)
    data = load(where, split="test")
    assert data.keys == ["3.png", "4.png", "5.png"]
    assert data.classes == ("a", "b")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1]
    assert data.read(2).getpixel((0, 0)) == (5, 0, 0)
    assert pickle.loads(pickle.dumps(data)).read(1).getpixel((0, 0)) == (4, 0, 0)
    assert len(load(where, split="all")) == 5
    assert load(where, split="test", label="none").labels is None


def test_fingerprint_follows_the_images(tmp_path: Path) -> None:
    prints = [
        load(repository(tmp_path / name, test=shades)).fingerprint
        for name, shades in (("a", [1, 2]), ("b", [1, 2]), ("c", [1, 4]))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_keys_count_rows_where_there_are_no_paths(tmp_path: Path) -> None:
    assert load(repository(tmp_path / "r", paths=False, test=[7, 8])).keys == ["test#0", "test#1"]


def test_images_that_are_files(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "r/train" / name).mkdir(parents=True)
        (tmp_path / "r/train" / name / "1.png").write_bytes(png(len(name)))
    (tmp_path / "r/train/dog/2.png").write_bytes(b"")
    data = load(str(tmp_path / "r"))
    assert data.classes == ("cat", "dog")
    assert data.keys == ["train#0", "train#1", "train#2"]  # not where they lie on this machine
    assert data.read(1).size == (3, 2)
    with pytest.raises(ImageError, match="empty"):
        data.read(2)
    assert len(data.fingerprint) == 64


def test_no_such_configuration(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'datasets' cannot load it: .*nope"):
        load(repository(tmp_path / "r", test=[1]), config="nope")


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/test.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match="no column holds images, only x, y"):
        load(str(tmp_path / "r"))


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError)"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist.\nmore"),
    ],
)
def test_not_there_or_no_network(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(MissingError, match=r"no data set 'org/name' that can be reached") as caught:
        load("org/name")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_loader_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported.\n at line 3")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"cannot load it: Dataset scripts are no longer supported"):
        load(repository(tmp_path / "r", test=[1]))
