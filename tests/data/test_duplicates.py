"""Copies are found whatever their size and compression; different pictures are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from polysem.data import duplicates
from polysem.data.dataset import ImageData
from polysem.data.duplicates import difference_hash, look_alikes


def noise(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((110, 90), Image.Resampling.BICUBIC)


class Pictures(ImageData):
    fingerprint = ""

    def __init__(self, pictures: list[Image.Image]) -> None:
        super().__init__("spec", [f"k{i}" for i in range(len(pictures))])
        self.pictures = pictures

    def read(self, index: int) -> Image.Image:
        return self.pictures[index]


@pytest.mark.parametrize("rows", [2, 2048])
def test_copies_are_found(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", rows)
    file = io.BytesIO()
    noise(1).save(file, "JPEG", quality=60)
    pictures = [noise(0), noise(1), noise(2), noise(0).resize((300, 250)), Image.open(file)]
    found = look_alikes(Pictures(pictures), max_distance=4)
    pairs = set(zip(found["image"], found["image_2"], strict=True))
    assert pairs == {("k0", "k3"), ("k1", "k4")}
    assert found["distance_bits"].is_monotonic_increasing


def test_distances_are_those_of_the_bits() -> None:
    pictures = [noise(seed) for seed in range(7)]
    bits = [difference_hash(picture) for picture in pictures]
    found = look_alikes(Pictures(pictures), max_distance=64)
    assert len(found) == 21
    for _, row in found.iterrows():
        one, two = (bits[int(row[name][1:])] for name in ("image", "image_2"))
        assert row["distance_bits"] == sum(a != b for a, b in zip(one, two, strict=True))


def test_nothing_to_compare() -> None:
    assert look_alikes(Pictures([noise(0)])).columns.tolist() == [
        "image", "image_2", "distance_bits",
    ]  # fmt: skip
    assert len(look_alikes(Pictures([]))) == 0
