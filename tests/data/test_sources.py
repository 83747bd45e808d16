"""Every spec finds its reader; every wrong one gets a sentence that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polysem.data import sources
from polysem.data.sources import load_data
from polysem.errors import DataError, MissingError, SpecError


class Reached(Exception):
    """A reader was called."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """Replace all readers; each call is noted with its kind, what it reads, and options."""
    made: list[tuple[str, str, dict[str, Any]]] = []

    def stand_in(kind: str) -> Any:
        def load(where: Any, **options: Any) -> None:
            made.append((kind, str(where), options))
            raise Reached

        return load

    stand_ins = {
        kind: sources._Source(stand_in(kind), source.options)
        for kind, source in sources._SOURCES.items()
    }
    monkeypatch.setattr(sources, "_SOURCES", stand_ins)
    return made


def reached(spec: str | Path, **options: Any) -> None:
    with pytest.raises(Reached):
        load_data(spec, **options)


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_what_lies_at_a_path_is_found_out(tmp_path: Path, calls: list[Any]) -> None:
    touch(
        tmp_path / "images/cat/1.png",
        tmp_path / "tables/train.parquet",
        tmp_path / "hf/data/train-00000-of-00001.parquet",
        tmp_path / "hf2/test/0.parquet",
        tmp_path / "c10/batches.meta", tmp_path / "c10/data_batch_1",
        tmp_path / "up/cifar-100-python/meta", tmp_path / "up/cifar-100-python/test",
        tmp_path / "a.parquet", tmp_path / "A.NPZ", tmp_path / "c.tar.gz",
    )  # fmt: skip
    (tmp_path / "ham").mkdir()
    (tmp_path / "ham/meta.csv").write_text("lesion_id,image_id,dx\n")
    expected = {
        "images": "folder", "tables": "parquet", "hf": "parquet", "hf2": "parquet",
        "c10": "cifar", "up": "cifar", "a.parquet": "parquet", "A.NPZ": "medmnist",
        "c.tar.gz": "cifar", "ham": "ham10000", "ham/meta.csv": "ham10000",
    }  # fmt: skip
    for place in expected:
        reached(tmp_path / place)
    assert [(kind, where) for kind, where, _ in calls] == [
        (kind, str(tmp_path / place)) for place, kind in expected.items()
    ]


@pytest.mark.parametrize("kind", [kind for kind in sources._SOURCES if kind != "hub"])
def test_a_prefix_decides(kind: str, tmp_path: Path, calls: list[Any]) -> None:
    reached(f"{kind}:{tmp_path}")
    reached(f"{kind.upper()}:{tmp_path}?split=test")
    assert [call[:2] for call in calls] == [(kind, str(tmp_path))] * 2
    assert calls[1][2] == {"name": f"{kind.upper()}:{tmp_path}?split=test", "split": "test"}


def test_options(tmp_path: Path, calls: list[Any]) -> None:
    reached(f"ham10000:{tmp_path}?split=val&seed=7")
    reached(tmp_path, split="test")
    reached(f"{tmp_path}?label=none", split="test")
    reached(f"{tmp_path}?split=test", split="test")
    assert [options for _, _, options in calls] == [
        {"name": f"ham10000:{tmp_path}?split=val&seed=7", "split": "val", "seed": 7},
        {"name": f"{tmp_path}?split=test", "split": "test"},
        {"name": f"{tmp_path}?label=none&split=test", "label": "none", "split": "test"},
        {"name": f"{tmp_path}?split=test", "split": "test"},
    ]


def test_hub(calls: list[Any]) -> None:
    reached("hub:org/name")
    reached("hub:org/name:test?config=big&label=fine")
    assert [(where, options) for _, where, options in calls] == [
        ("org/name", {"name": "hub:org/name"}),
        (
            "org/name",
            {
                "name": "hub:org/name:test?config=big&label=fine",
                "config": "big", "label": "fine", "split": "test",
            },
        ),
    ]  # fmt: skip


def test_existing_paths_are_taken_as_they_are(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(Path("why?split=1/1.png"), Path("hub:x/1.png"), Path("shapes/1.png"))
    for spec in ("why?split=1", "hub:x", "./shapes"):
        reached(spec)
    assert [call[:2] for call in calls] == [
        ("folder", "why?split=1"), ("folder", "hub:x"), ("folder", "shapes"),
    ]  # fmt: skip


def test_shapes() -> None:
    assert load_data("shapes:test?n=30&label=colour").name.startswith("shapes:test")
    assert load_data("shapes?n=30", split="test").keys[0].startswith("shapes/test")
    with pytest.raises(SpecError, match="another split than 'train'"):
        load_data("shapes:test", split="train")
    with pytest.raises(SpecError):
        load_data("shapes:tset")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("parket:x", "unknown source of data 'parket'; did you mean 'parquet'.*expected a path"),
        ("https://example.org/a.zip", "does not say what lies there.*put webdataset: or parquet:"),
        ("", "names no data; expected a path"),
        ("folder:", "names no data"),
        ("hub:", "names no data set; expected hub:ORG/NAME"),
        ("hub:org/name:", "names no data set"),
        ("hub:org/name:a?split=b", "two splits"),
        (".?split", "'split' is no option"),
        (".?split=", "'split=' is no option"),
        (".?split=a&split=b", "gives the option 'split' twice"),
        ("folder:.?splt=a", "no option 'splt'; did you mean 'split'"),
        ("ham10000:.?seed=x", "seed has to be a whole number"),
    ],
)
def test_specs_that_cannot_be_understood(spec: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load_data(spec)


def test_two_wishes_for_a_split(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="another split than 'b'"):
        load_data(f"{tmp_path}?split=a", split="b")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(MissingError, match=r"no data at .*photo; did you mean 'photos'"):
        load_data(tmp_path / "photo")
    with pytest.raises(MissingError, match="no data at"):
        load_data(f"folder:{tmp_path}/no/such/folder")
    with pytest.raises(MissingError, match="did you mean 'shapes'"):
        load_data("shpes")


def test_files_that_are_no_data_set(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg", tmp_path / "notes.md")
    with pytest.raises(SpecError, match="a single image; give its folder"):
        load_data(tmp_path / "1.jpg")
    with pytest.raises(SpecError, match="not known as data"):
        load_data(tmp_path / "notes.md")


def test_a_folder_end_to_end_with_a_limit(tmp_path: Path) -> None:
    for number in range(30):
        file = tmp_path / f"{'ab'[number // 15]}/{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 3), number).save(file)
    data = load_data(tmp_path, limit=10)
    assert data.name == str(tmp_path)
    assert data.labels is not None
    assert set(data.labels.tolist()) == {0, 1}
    for index, key in enumerate(data.keys):
        assert np.asarray(data[index])[0, 0].tolist() == [int(key[2:4])] * 3
    assert load_data(tmp_path, limit=10, seed=1).keys != data.keys
    assert len(load_data(tmp_path, limit=1000)) == 30
    with pytest.raises(SpecError, match="limit of 0 images"):
        load_data(tmp_path, limit=0)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image files"):
        load_data(tmp_path)
