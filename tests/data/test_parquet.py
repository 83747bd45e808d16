"""Tables of encoded images: any column layout, any row group size, one or many files."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from polysem.data import parquet
from polysem.data.parquet import ParquetData, load_parquet
from polysem.data.sources import load_data
from polysem.errors import DataError, ImageError, MissingError, SpecError

SHARED = Path(__file__).parents[2] / "../shared/data"


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 2), shade).save(file, "PNG")
    return file.getvalue()


def write(
    file: Path,
    shades: list[int],
    *,
    paths: list[str | None] | None = None,
    features: dict[str, Any] | None = None,
    rows: int = 2,
    **columns: list[Any],
) -> Path:
    """Write a table of one-colour images; `rows` in a row group."""
    images = [{"bytes": png(s), "path": p} for s, p in zip(shades, paths or [None] * 99)]  # noqa: B905
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind), **columns})
    if features:
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=rows)
    return file


def load(path: Path, **options: str) -> ParquetData:
    return load_parquet(path, name="spec", **options)


def shades(data: ParquetData) -> list[Any]:
    return [data.read(i).getpixel((0, 0))[0] for i in range(len(data))]  # type: ignore[index]


CLASSES = {"_type": "ClassLabel", "names": ["cat", "dog"]}


def test_rows_labels_names_and_paths(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.parquet", [5, 6, 7], paths=["x/1.png", "x/2.png", "y/1.png"],
        features={"image": {"_type": "Image"}, "kind": CLASSES}, kind=[1, 0, 1],
    )  # fmt: skip
    data = load(file)
    assert data.keys == ["x/1.png", "x/2.png", "y/1.png"]
    assert data.classes == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1]
    assert shades(data) == [5, 6, 7]
    assert data.read(0).mode == "RGB"


@pytest.mark.parametrize("paths", [["a", "a", "b"], ["a", None, "b"], None])
def test_keys_count_rows_where_paths_do_not_serve(
    tmp_path: Path, paths: list[str | None] | None
) -> None:
    write(tmp_path / "d/a.parquet", [1, 2, 3], paths=paths)
    write(tmp_path / "d/b.parquet", [4], paths=["z"])
    data = load(tmp_path / "d")
    assert data.keys == ["a.parquet#0", "a.parquet#1", "a.parquet#2", "b.parquet#0"]
    assert shades(data) == [1, 2, 3, 4]


def test_bare_bytes_without_metadata(tmp_path: Path) -> None:
    table = pa.table({"img": pa.array([png(9)], pa.large_binary()), "label": ["cat"]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    assert (shades(data), data.classes, data.keys) == ([9], ("cat",), ["a.parquet#0"])


def test_without_labels(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.parquet", [1, 2]))
    assert (data.labels, data.classes) == (None, None)
    held_back = write(tmp_path / "b.parquet", [1], features={"label": CLASSES}, label=[-1])
    assert load(held_back).labels is None


def test_choice_of_columns(tmp_path: Path) -> None:
    features = {"fine": CLASSES, "coarse": CLASSES}
    file = write(tmp_path / "a.parquet", [1, 2], features=features, fine=[0, 1], coarse=[0, 0])
    with pytest.raises(SpecError, match="label columns fine, coarse"):
        load(file)
    chosen = load(file, label="coarse").labels
    assert chosen is not None
    assert chosen.tolist() == [0, 0]
    assert load(file, label="none").labels is None


def test_label_outside_the_classes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [1, 2], features={"label": CLASSES}, label=[0, 2])
    with pytest.raises(DataError, match=r"'a\.parquet#1' has the label 2, but there are only 2"):
        load(file)


def test_splits_by_file_and_by_folder(tmp_path: Path) -> None:
    for file, shade in (
        ("data/train-00000-of-00002.parquet", 1),
        ("data/train-00001-of-00002.parquet", 2),
        ("data/extra-00000-of-00001-0a1b.parquet", 3),
        ("validation/part.parquet", 4),
        (".cache/train-00000-of-00001.parquet", 5),
    ):
        write(tmp_path / file, [shade])
    with pytest.raises(SpecError, match="has the splits extra, train, validation"):
        load(tmp_path)
    assert shades(load(tmp_path, split="train")) == [1, 2]
    assert shades(load(tmp_path, split="extra")) == [3]
    assert shades(load(tmp_path, split="val")) == [4]
    assert shades(load(tmp_path, split="all")) == [3, 1, 2, 4]
    with pytest.raises(SpecError, match="no split 'test'"):
        load(tmp_path / "data/train-00000-of-00002.parquet", split="test")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1], features={"label": CLASSES}, label=[0])
    other = {"_type": "ClassLabel", "names": ["dog", "cat"]}
    write(tmp_path / "b.parquet", [2], features={"label": other}, label=[0])
    with pytest.raises(DataError, match="differ in their columns or classes"):
        load(tmp_path)


def test_what_is_no_table_of_images(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read as a parquet file"):
        load(tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column holds images, only x"):
        load(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no rows"):
        load(write(tmp_path / "c.parquet", []))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no parquet files"):
        load(tmp_path / "empty")


def test_damage_found_later(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [1, 2])
    content = bytearray(file.read_bytes())
    content[4:40] = bytes(36)
    file.write_bytes(content)
    data = load(file)
    with pytest.raises(DataError, match="row group 0 cannot be read"):
        data.read(0)


def test_one_bad_image_among_good_ones(tmp_path: Path) -> None:
    images = [{"bytes": png(1), "path": "a"}, {"bytes": None, "path": "b"}, None]
    images += [{"bytes": b"<svg/>", "path": "d"}]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    assert data.read(0).size == (3, 2)
    for index, words in ((1, "holds no bytes"), (2, "holds no bytes"), (3, "SVG")):
        with pytest.raises(ImageError, match=words):
            data.read(index)


def test_large_row_groups_are_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 1000)
    data = load(write(tmp_path / "a.parquet", list(range(60)), rows=60))
    rows, _ = data._blocks.fetch(0)
    assert 1 < len(rows) < 30
    assert shades(data) == list(range(60))
    assert data.read(3).getpixel((0, 0)) == (3, 3, 3)


def test_opening_reads_no_images(tmp_path: Path) -> None:
    big = np.random.default_rng(0).bytes(2**20)
    pq.write_table(pa.table({"image": [big] * 20}), tmp_path / "a.parquet")
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    load(tmp_path / "a.parquet")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 2**20


def test_copies_and_workers(tmp_path: Path) -> None:
    data = load(write(tmp_path / "a.parquet", list(range(11)), rows=3))
    assert data.read(4).getpixel((0, 0)) == (4, 4, 4)
    copy = pickle.loads(pickle.dumps(data))
    assert shades(copy) == list(range(11))
    data.transform = _shade
    loader = DataLoader(data, batch_size=4, num_workers=2)
    assert [shade for batch in loader for shade in batch.tolist()] == list(range(11))


def _shade(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    one = load(write(tmp_path / "a.parquet", [1, 2])).fingerprint
    assert load(write(tmp_path / "a.parquet", [1, 2])).fingerprint == one
    assert load(write(tmp_path / "a.parquet", [1, 3])).fingerprint != one


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared CIFAR-10 table")
def test_cifar10_table() -> None:
    data = load(SHARED / "cifar10/test.parquet")
    assert data.labels is not None
    assert len(data) == 10_000
    assert np.bincount(data.labels).tolist() == [1000] * 10
    assert data.classes is not None
    assert data.classes[9] == "truck"
    for index in (0, 9_999, 4_999, 5_000):
        assert data.read(index).size == (32, 32)
        assert data.keys[index].split("/")[0] == data.classes[data.labels[index]]


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared sample of ImageNet")
def test_imagenet_sample_table() -> None:
    data = load(SHARED / "imagenet_sample/sample.parquet")
    assert data.labels is not None
    assert data.labels.tolist() == list(range(500))
    assert data.classes is not None
    assert len(data.classes) == 500
    assert min(data.read(77).size) == 256


def test_tables_behind_an_address(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for number in range(2):
        file = write(tmp_path / f"p{number}.parquet", [number, 10 + number], label=[0, 1])
        fs.pipe_file(f"/tables/p{number}.parquet", file.read_bytes())
    here, far = load(tmp_path), load_data("memory://tables/p{0..1}.parquet")
    assert shades(far) == shades(here) == [0, 10, 1, 11]
    assert far.keys == here.keys
    assert far.labels.tolist() == [0, 1, 0, 1]
    before = far.fingerprint
    file = write(tmp_path / "p1.parquet", [9, 9], label=[0, 1])
    fs.pipe_file("/tables/p1.parquet", file.read_bytes())
    assert load_data("memory://tables/p{0..1}.parquet").fingerprint != before
    with pytest.raises(MissingError, match=r"no file memory://tables/p2\.parquet"):
        load_data("memory://tables/p{0..2}.parquet")


def test_more_rows_than_bytes_are_refused_before_they_are_counted_out(tmp_path: Path) -> None:
    nothing = pa.nulls(3_000_000, pa.binary())
    pq.write_table(pa.table({"image": nothing}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="claims 3,000,000 images in fewer bytes"):
        load(tmp_path / "t.parquet")
