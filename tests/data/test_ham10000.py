"""HAM10000: one file an image, and no lesion on two sides of a split."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polysem.data.ham10000 import (
    CLASSES,
    FRACTIONS,
    Ham10000,
    find_metadata,
    load_ham10000,
    split_by_lesion,
)
from polysem.errors import DataError, SpecError

HEADER = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
ROWS = [
    ("HAM_2", "ISIC_3", "nv", "histo", "45.0", "male", "back"),
    ("HAM_1", "ISIC_1", "mel", "histo", "", "female", "face"),
    ("HAM_1", "ISIC_2", "mel", "histo", "80", "unknown", "face"),
    ("HAM_3", "ISIC_4", "bkl", "consensus", "0.0", "", "abdomen"),
]
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")


def publish(
    folder: Path,
    rows: Sequence[tuple[str, ...]] = ROWS,
    *,
    table: str = "HAM10000_metadata.csv",
    header: tuple[str, ...] = HEADER,
    parts: tuple[str, ...] = PARTS,
    ending: str = ".jpg",
) -> Path:
    separator, quote = (",", "") if table.endswith("csv") else ("\t", '"')
    lines = [separator.join(f"{quote}{cell}{quote}" for cell in row) for row in (header, *rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / table).write_text("\n".join(lines) + "\n")
    for number, row in enumerate(rows):
        file = folder / parts[number % len(parts)] / f"{row[1]}{ending}"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 0)).save(file, "PNG")
    return folder


def load(path: Path, **options: Any) -> Ham10000:
    return load_ham10000(path, name="spec", **options)


@pytest.mark.parametrize(
    ("table", "parts", "ending"),
    [
        ("HAM10000_metadata.csv", PARTS, ".jpg"),
        ("HAM10000_metadata.tab", PARTS, ".jpg"),
        ("HAM10000_metadata", ("images",), ".png"),
        ("ham_meta.tsv", ("a/b",), ".JPG"),
    ],
)
def test_published_and_mirrored_layouts(
    tmp_path: Path, table: str, parts: tuple[str, ...], ending: str
) -> None:
    for part in parts:
        (tmp_path / part).mkdir(parents=True)
    data = load(publish(tmp_path, table=table, parts=parts, ending=ending))
    assert data.keys == ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"]
    assert data.classes == tuple(CLASSES.values())
    assert data.labels is not None
    assert [data.classes[label] for label in data.labels] == [
        "melanoma", "melanoma", "melanocytic nevi", "benign keratosis-like lesions",
    ]  # fmt: skip
    assert [data.read(i).getpixel((0, 0))[0] for i in range(4)] == [1, 2, 0, 3]  # type: ignore[index]
    assert pickle.loads(pickle.dumps(data)).read(3).size == (6, 4)


def test_metadata_is_aligned_and_gaps_are_missing(tmp_path: Path) -> None:
    data = load(publish(tmp_path))
    assert data.metadata["image_id"].tolist() == data.keys
    np.testing.assert_array_equal(data.metadata["age"], [np.nan, 80, 45, 0])
    assert data.metadata["sex"].isna().tolist() == [False, False, False, True]
    assert data.metadata["lesion_id"].tolist() == ["HAM_1", "HAM_1", "HAM_2", "HAM_3"]


def test_newer_copies_have_one_more_column(tmp_path: Path) -> None:
    rows = [(*row, "vidir_modern") for row in ROWS]
    assert "dataset" in load(publish(tmp_path, rows, header=(*HEADER, "dataset"))).metadata


def test_the_table_itself_may_be_named(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "HAM10000_metadata.tab").write_text(
        "\t".join(HEADER) + "\n" + "\t".join(ROWS[0]) + "\n"
    )
    with pytest.raises(SpecError, match="several HAM10000 tables"):
        load(tmp_path)
    assert load(tmp_path / "HAM10000_metadata.tab").keys == ["ISIC_3"]


def test_other_tables_are_not_mistaken(tmp_path: Path) -> None:
    (tmp_path / "hmnist_28_28_L.csv").write_text("pixel0000,pixel0001,label\n1,2,3\n")
    (tmp_path / "metadata").mkdir()
    assert find_metadata(tmp_path) is None
    with pytest.raises(DataError, match="no HAM10000 metadata"):
        load(tmp_path)


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / PARTS[0] / "ISIC_2.jpg").unlink()
    (tmp_path / PARTS[0] / "ISIC_3.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of 4 images have no file .* ISIC_2, ISIC_3; are both"):
        load(tmp_path)


def test_copies_are_named_and_other_files_ignored(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/ISIC_99.jpg").touch()
    (tmp_path / "more/ISIC_1_segmentation.png").touch()
    assert len(load(tmp_path)) == 4
    (tmp_path / "more/ISIC_1.jpg").touch()
    with pytest.raises(DataError, match=r"1 images have several files.*more/ISIC_1\.jpg"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": [*ROWS, ROWS[0]]}, "several rows for 1 images, such as 'ISIC_3'"),
        ({"rows": [("HAM_1", "ISIC_1", "mell", *ROWS[0][3:])]}, "did you mean 'mel'"),
        ({"rows": [ROWS[0], ("", "ISIC_1", "mel", *ROWS[0][3:])]}, "line 3: lesion_id is missing"),
        ({"rows": []}, "has no rows"),
    ],
)
def test_tables_that_do_not_hold(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(publish(tmp_path, **change))


def test_a_named_table_without_the_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("lesion_id,image,dx\n1,2,nv\n")
    with pytest.raises(DataError, match=r"no column 'image_id'"):
        load(tmp_path / "x.csv")


def test_splits_partition_the_images(tmp_path: Path) -> None:
    rows = [
        (f"HAM_{i // 2}", f"ISIC_{i:03}", ["nv", "mel"][i % 4 // 2], "histo", "", "", "")
        for i in range(80)
    ]
    publish(tmp_path, rows)
    parts = {split: load(tmp_path, split=split) for split in FRACTIONS}
    assert sorted(key for part in parts.values() for key in part.keys) == load(tmp_path).keys
    assert [len(part) for part in parts.values()] == [56, 12, 12]
    lesions = [set(part.metadata["lesion_id"]) for part in parts.values()]
    assert not (lesions[0] & lesions[1] | lesions[0] & lesions[2] | lesions[1] & lesions[2])
    assert load(tmp_path, split="validation").keys == parts["val"].keys
    assert load(tmp_path, split="test", seed=1).keys != parts["test"].keys
    assert len({part.fingerprint for part in parts.values()}) == 3
    with pytest.raises(SpecError, match="no split 'tets'"):
        load(tmp_path, split="tets")


SIZES = st.lists(
    st.tuples(st.sampled_from(sorted(CLASSES)), st.integers(1, 6)), min_size=1, max_size=80
)


@given(SIZES, st.integers(0, 2**63), st.randoms(use_true_random=False))
def test_split_laws(sizes: list[tuple[str, int]], seed: int, random: Any) -> None:
    images = [(f"HAM_{n}", dx) for n, (dx, count) in enumerate(sizes) for _ in range(count)]
    lesions, diagnoses = zip(*images, strict=True)
    parts = split_by_lesion(lesions, diagnoses, seed=seed)
    assert set(parts.tolist()) <= set(FRACTIONS)

    homes = defaultdict(set)
    for lesion, part in zip(lesions, parts.tolist(), strict=True):
        homes[lesion].add(part)
    assert all(len(home) == 1 for home in homes.values())

    got = Counter(zip(diagnoses, parts.tolist(), strict=True))
    for dx in set(diagnoses):
        largest = max(count for code, count in sizes if code == dx)
        for split, share in FRACTIONS.items():
            excess = got[dx, split] - share * diagnoses.count(dx)
            assert -largest * (len(FRACTIONS) - 1) - 1e-9 <= excess <= largest + 1e-9

    order = list(range(len(images)))
    random.shuffle(order)
    again = split_by_lesion([lesions[i] for i in order], [diagnoses[i] for i in order], seed=seed)
    assert again.tolist() == parts[order].tolist()


def test_split_is_the_same_on_every_machine() -> None:
    lesions = [f"HAM_{i:07}" for i in range(12)]
    parts = split_by_lesion(lesions, ["nv"] * 12, seed=0)
    assert " ".join(parts.tolist()) == (
        "train train test train test val train train val train train train"
    )


def test_a_lesion_with_two_diagnoses_stays_together() -> None:
    parts = split_by_lesion(["a", "a", "b"], ["nv", "mel", "mel"])
    assert parts[0] == parts[1]


def test_other_fractions() -> None:
    lesions = [str(i) for i in range(10)]
    parts = split_by_lesion(lesions, ["nv"] * 10, fractions={"one": 0.5, "two": 0.5})
    assert Counter(parts.tolist()) == {"one": 5, "two": 5}
    for wrong in ({"one": 0.5}, {"one": 1.5, "two": -0.5}):
        with pytest.raises(ValueError, match="sum to 1"):
            split_by_lesion(lesions, ["nv"] * 10, fractions=wrong)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = publish(tmp_path) / "HAM10000_metadata.csv"
    header, _, rest = table.read_text().partition("\n")
    table.write_text(f"{header},image_id\n" + rest.replace("\n", ",x\n"))
    with pytest.raises(DataError, match="'image_id' more than once"):
        load(table, split="all")
