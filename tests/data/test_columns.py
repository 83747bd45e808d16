"""Columns are found by type, then by name; labels become class numbers or an error."""

from __future__ import annotations

from typing import Any

import pytest

from polysem.data.columns import image_column, label_column, labels_and_classes
from polysem.errors import DataError, SpecError

IMAGE: dict[str, Any] = {"_type": "Image"}
CLASS: dict[str, Any] = {"_type": "ClassLabel", "names": ["a", "b"]}


def named(values: list[Any], names: list[str] | None = None) -> tuple[Any, Any]:
    keys = [f"k{i}" for i in range(len(values))]
    labels, classes = labels_and_classes(values, names, name="spec", keys=keys)
    return (None if labels is None else labels.tolist()), classes


def test_image_column() -> None:
    assert image_column({"photo": IMAGE, "label": CLASS}, name="s") == "photo"
    assert image_column({"mask": IMAGE, "image": IMAGE}, name="s") == "image"
    assert image_column({"mask": IMAGE, "photo": IMAGE}, "mask", name="s") == "mask"
    with pytest.raises(SpecError, match=r"columns mask, photo; add '\?image=mask'"):
        image_column({"mask": IMAGE, "photo": IMAGE}, name="s")
    with pytest.raises(SpecError, match="did you mean 'photo'"):
        image_column({"photo": IMAGE}, "poto", name="s")
    with pytest.raises(DataError, match="no column holds images, only label"):
        image_column({"label": CLASS}, name="s")


def test_label_column() -> None:
    assert label_column({"image": IMAGE, "kind": CLASS}, name="s") == "kind"
    assert label_column({"image": IMAGE, "label": {}, "x": {}}, name="s") == "label"
    assert label_column({"image": IMAGE, "x": {}}, name="s") is None
    assert label_column({"image": IMAGE, "x": {}}, "x", name="s") == "x"
    assert label_column({"image": IMAGE, "label": CLASS}, "none", name="s") is None
    assert label_column({"fine": CLASS, "coarse": CLASS, "label": CLASS}, name="s") == "label"
    with pytest.raises(SpecError, match=r"label columns fine, coarse; add '\?label=fine'"):
        label_column({"fine": CLASS, "coarse": CLASS}, name="s")
    with pytest.raises(SpecError, match="no column 'lable'; did you mean 'label'"):
        label_column({"label": CLASS}, "lable", name="s")


def test_numbers_keep_their_names() -> None:
    assert named([1, 0, 1], ["a", "b"]) == ([1, 0, 1], ("a", "b"))
    assert named([2, 0]) == ([2, 0], None)
    assert named([True, False]) == ([1, 0], None)


def test_words_are_numbered_in_order() -> None:
    assert named(["dog", "cat", "dog"]) == ([1, 0, 1], ("cat", "dog"))
    assert named(["b"], ["a", "b"]) == ([1], ("a", "b"))
    with pytest.raises(DataError, match=r"'k1' has the label 'bb'.*did you mean 'b'"):
        named(["b", "bb"], ["a", "b"])


@pytest.mark.parametrize("values", [[-1, -1], [None, None], []])
def test_labels_held_back_are_no_labels(values: list[Any]) -> None:
    assert named(values, ["a", "b"]) == (None, ("a", "b"))


@pytest.mark.parametrize("gap", [-1, None])
def test_labels_missing_for_some_are_refused(gap: int | None) -> None:
    with pytest.raises(DataError, match=r"1 of 3 images have no label, such as 'k1'.*label=none"):
        named([0, gap, 1])


@pytest.mark.parametrize("odd", [0.5, [0, 1], "word"])
def test_other_labels_are_refused(odd: Any) -> None:
    with pytest.raises(DataError, match="'k1' has the label"):
        named([0, odd])


@pytest.mark.parametrize("names", [3, "cat", {"a": 1}, ["cat", 5], [None]])
def test_class_names_that_are_no_words(names: Any) -> None:
    with pytest.raises(DataError, match="not a list of words"):
        labels_and_classes([0, 1], names, name="t", keys=["a", "b"])
