"""Views of drawn images: where they are cut, and that the truth about them is told anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polysem.data.layout import MOST_THINGS
from polysem.data.shapes import Shapes
from polysem.data.subset import Subset
from polysem.errors import DataError, RecipeError
from polysem.models.transform import Transform
from polysem.train.captioned import (
    ABSENT,
    GROUND,
    PRESENT,
    Captioned,
    caption_truth,
    cut,
    random_boxes,
    whole,
)

TRANSFORM = Transform(size=(64, 64), crop_pct=1.0)


def _drawn(n: int = 24) -> Captioned:
    return caption_truth(Shapes("train", n=n), TRANSFORM, device=torch.device("cpu"))


IMAGES = _drawn()


def test_images_are_those_of_the_data_with_their_truth() -> None:
    data = Shapes("train", n=24)
    assert torch.equal(IMAGES.pixels[5], TRANSFORM(data.read(5)))
    scene = data.scene(5)
    assert int((IMAGES.things[5, :, 0] >= 0).sum()) == len(scene.things)
    assert torch.equal(IMAGES.owners[5], torch.from_numpy(data.owners(5)))
    assert IMAGES.labels.tolist() == data.labels.tolist()


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_a_view_shows_what_lies_in_it(seed: int, share: float) -> None:
    boxes = random_boxes(IMAGES.owners, share, torch.Generator().manual_seed(seed))
    left, top, side = boxes.unbind(1)
    assert bool(((side > 0.18) & (side <= 1) & (left >= 0) & (top >= 0)).all())
    assert bool(((left + side <= 1 + 1e-6) & (top + side <= 1 + 1e-6)).all())
    _, seen = cut(IMAGES.pixels, IMAGES.owners, whole(IMAGES.things, IMAGES.background), boxes)
    middles = (torch.arange(64) + 0.5) / 64
    for number in range(0, 24, 5):
        x = (middles >= left[number]) & (middles <= left[number] + side[number])
        y = (middles >= top[number]) & (middles <= top[number] + side[number])
        part = IMAGES.owners[number][y][:, x]
        for thing in range(MOST_THINGS):
            total = int((IMAGES.owners[number] == thing + 1).sum())
            inside = int((part == thing + 1).sum()) / max(total, 1)
            there = IMAGES.things[number, thing].tolist()
            gone = [-1] * 4
            assert seen.things[number, thing].tolist() == (there if inside > PRESENT else gone)
            assert seen.possible_things[number, thing].tolist() == (
                there if inside > ABSENT else gone
            )
        ground = int((part == 0).sum()) / part.numel()
        told = int(IMAGES.background[number]) if ground > GROUND else -1
        assert int(seen.background[number]) == told


def test_whole_images_stay_as_they_are() -> None:
    boxes = random_boxes(IMAGES.owners, 0, torch.Generator().manual_seed(0))
    assert torch.equal(boxes, torch.tensor([[0.0, 0.0, 1.0]]).expand(24, 3))
    views, seen = cut(IMAGES.pixels, IMAGES.owners, whole(IMAGES.things, IMAGES.background), boxes)
    assert torch.equal(views, IMAGES.pixels)
    assert torch.equal(seen.things, IMAGES.things)


def test_a_part_is_enlarged_as_pillow_does_it() -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.5]]).repeat(24, 1)
    views, _ = cut(IMAGES.pixels, IMAGES.owners, whole(IMAGES.things, IMAGES.background), boxes)
    for number in range(3):
        image = Image.fromarray(IMAGES.pixels[number].permute(1, 2, 0).numpy())
        there = TRANSFORM(image.resize((64, 64), Image.Resampling.BICUBIC, box=(16, 32, 48, 64)))
        apart = (views[number].float() - there.float()).abs()[:, 2:-2, 2:-2]
        assert apart.mean() < 3  # another cubic (-0.75, not -0.5), and edges that see beyond


def test_images_without_objects_are_not_cut_around_one() -> None:
    empty = torch.zeros((40, 64, 64), dtype=torch.uint8)
    boxes = random_boxes(empty, 1, torch.Generator().manual_seed(0))
    assert bool(boxes.isfinite().all())
    assert bool((boxes[:, 2] >= 0.3).any())


def test_an_object_is_in_the_middle_of_its_view() -> None:
    owners = torch.zeros((400, 64, 64), dtype=torch.uint8)
    owners[:, 10:20, 30:40] = 2  # and no first object
    boxes = random_boxes(owners, 1, torch.Generator().manual_seed(1))
    around = boxes[boxes[:, 2] < 0.29]  # no other view is as small
    middle = around[:, :2] + around[:, 2:] / 2
    assert len(around) > 50
    assert bool(((middle - torch.tensor([35 / 64, 15 / 64])).abs() < 0.1).all())


def test_what_cannot_be_captioned_is_refused() -> None:
    data = Shapes("train", n=8)
    with pytest.raises(DataError, match="learns phrases about drawn images"):
        caption_truth(Subset(data, np.array([0, 1])), TRANSFORM, device=torch.device("cpu"))
    with pytest.raises(RecipeError, match="give size=32 in the data"):
        caption_truth(data, Transform(size=(32, 32), crop_pct=1.0), device=torch.device("cpu"))
