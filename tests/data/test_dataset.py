"""The contract that every data source keeps through its base class."""

import pickle
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.errors import DataError


class Plain(ImageData):
    """Pictures of one grey level each."""

    fingerprint = "00"

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (3, 2), (index, index, index))


def plain(
    labels: npt.ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    keys: Sequence[str] = ("a", "b", "c"),
) -> Plain:
    return Plain("plain", keys, labels=labels, classes=classes)


def first_level(image: Image.Image) -> int:
    level = image.getpixel((0, 0))
    assert isinstance(level, tuple)
    return level[0]


def test_items_are_pictures_or_what_the_transform_makes_of_them() -> None:
    data = plain()
    assert len(data) == 3
    assert isinstance(data[1], Image.Image)
    data.transform = first_level
    assert [data[0], data[-1], data[np.int64(1)]] == [0, 2, 1]
    assert list(data) == [0, 1, 2]


@pytest.mark.parametrize("index", [3, -4])
def test_no_such_image(index: int) -> None:
    with pytest.raises(IndexError, match="plain has 3 images"):
        plain()[index]


def test_labels_become_int64() -> None:
    data = plain([2, 0, 1], ["x", "y", "z"])
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [2, 0, 1]
    assert data.classes == ("x", "y", "z")
    assert plain().labels is None
    assert plain().classes is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"3 images but labels of shape \(2,\)"),
        ([[0, 1, 2]], r"labels of shape \(1, 3\)"),
        ([0.0, 1.0, 2.0], "labels are float64"),
        ([0, -1, 1], "image 'b' has the label -1"),
        ([0, 1, 2], r"image 'c' has the label 2, but there are only 2 classes \(0 to 1\)"),
    ],
)
def test_labels_that_do_not_fit(labels: npt.ArrayLike, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plain(labels, ["x", "y"])


def test_keys_must_be_unique() -> None:
    with pytest.raises(DataError, match="key 'b' occurs more than once"):
        plain(keys=["a", "b", "c", "b"])


def test_pickles() -> None:
    data = plain([2, 0, 1])
    data.transform = first_level
    again = pickle.loads(pickle.dumps(data))
    assert list(again) == [0, 1, 2]
    assert again.labels.tolist() == [2, 0, 1]


def test_read_and_fingerprint_are_required() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ImageData("nothing", [])  # type: ignore[abstract]
