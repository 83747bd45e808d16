"""Sheets of images: every image once, where its slot says, and what is gone is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polysem.report.site.sprites import first_seen, thumbnail_size, write_sprites


def plain(image: int) -> Image.Image:
    if image == 7:
        raise LookupError(image)
    return Image.new("RGB", (48, 32), (image * 3 % 256, 255 - image, 40))


def test_images_lie_where_their_slots_say(tmp_path: Path) -> None:
    wanted = np.array([200, 7, *range(20, 100)])
    sprites = write_sprites(plain, wanted, tmp_path, "run", size=(32, 48))
    told = sprites.describe()
    assert (told["width"], told["height"]) == (48, 32)
    assert len(told["sheets"]) == 2
    assert sprites.missing == [1]
    assert not sprites.all_missing
    per_sheet = told["across"] ** 2
    for image in (200, 20, 64, 99):
        slot = int(sprites.slots[image])
        with Image.open(tmp_path / told["sheets"][slot // per_sheet]) as sheet:
            y, x = divmod(slot % per_sheet, told["across"])
            seen = np.asarray(sheet.convert("RGB"))[y * 32 + 16, x * 48 + 24].astype(int)
        assert np.abs(seen - np.asarray(plain(image))[0, 0].astype(int)).max() < 12
    assert sprites.slots[3] == -1


def test_where_no_image_is_left_there_is_no_sheet(tmp_path: Path) -> None:
    def gone(image: int) -> Image.Image:
        raise LookupError(image)

    sprites = write_sprites(gone, np.arange(70), tmp_path, "run", size=(8, 8))
    assert sprites.sheets == ["", ""]
    assert sprites.all_missing
    assert not list(tmp_path.iterdir())


def test_each_image_is_read_once_and_progress_is_told(tmp_path: Path) -> None:
    read: list[int] = []
    told: list[tuple[int, int]] = []

    def note(image: int) -> Image.Image:
        read.append(image)
        return plain(image)

    wanted = first_seen([np.array([[5, 5], [-1, 9]]), np.array([9, 2])])
    write_sprites(
        note, wanted, tmp_path, "run", size=(32, 48), on_image=lambda *at: told.append(at)
    )
    assert read == [5, 9, 2]
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("n_images", [10, 90_000])
def test_thumbnails_keep_the_shape_and_are_never_enlarged(n_images: int) -> None:
    for height, width in [(224, 224), (17, 31), (100, 400)]:
        small = thumbnail_size(height, width, n_images)
        assert small[0] <= height
        assert small[1] <= width
        assert small[0] / small[1] == pytest.approx(height / width, rel=0.05)
