"""A limit keeps images what they are, mixes classes, and nests."""

from __future__ import annotations

import numpy as np
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.data.subset import Subset, sample


class Grey(ImageData):
    fingerprint = "whole"

    def __init__(self) -> None:
        names = [f"k{i}" for i in range(60)]
        super().__init__("spec", names, labels=np.arange(60) // 20, classes=["a", "b", "c"])

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (2, 3), (index, 0, 0))


def test_images_keep_key_label_and_pixels() -> None:
    part = Subset(Grey(), np.array([5, 41]))
    assert (part.keys, part.name, part.classes) == (["k5", "k41"], "spec", ("a", "b", "c"))
    assert part.labels is not None
    assert part.labels.tolist() == [0, 2]
    assert part.read(1).getpixel((0, 0)) == (41, 0, 0)


def test_sample_is_mixed_ordered_repeatable_and_nested() -> None:
    data = Grey()
    small, large = sample(data, 10), sample(data, 30)
    assert small.labels is not None
    assert set(small.labels.tolist()) == {0, 1, 2}
    numbers = [int(key[1:]) for key in small.keys]
    assert numbers == sorted(numbers)
    assert set(small.keys) < set(large.keys)
    assert sample(data, 10).keys == small.keys
    assert sample(data, 10, seed=1).keys != small.keys
    assert sample(data, 60) is data


def test_fingerprint_tells_which_images() -> None:
    prints = {sample(Grey(), limit).fingerprint for limit in (9, 10, 60)}
    assert len(prints) == 3
