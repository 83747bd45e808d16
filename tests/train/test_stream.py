from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.errors import DataError, ImageError
from polysem.models.transform import Transform
from polysem.processes import Processes, processes
from polysem.train import images
from polysem.train.hold import hold
from polysem.train.images import LabelledImages
from polysem.train.order import Part, epoch_order, parts
from polysem.train.recipe import Recipe
from polysem.train.stream import RandomCrop, StreamedImages

TRANSFORM = Transform(size=(6, 4), crop_pct=1.0)


class _Coloured(ImageData):
    """Images of 9 by 12 pixels, all different; one may be unreadable."""

    fingerprint = "coloured"

    def __init__(self, n: int, broken: int | None = None) -> None:
        super().__init__("coloured", [f"image {i}" for i in range(n)], labels=np.arange(n) % 3)
        self.broken = broken

    def read(self, index: int) -> Image.Image:
        if index == self.broken:
            raise ImageError(self.keys[index], "it is damaged")
        pixels = np.random.default_rng(index).integers(0, 256, (12, 9, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


@pytest.fixture
def group() -> Iterator[Processes]:
    with processes("cpu") as found:
        yield found


def _hold(data: ImageData, recipe: Recipe, group: Processes, **options: bool) -> object:
    kwargs = {"training": True, **options}
    return hold(data, TRANSFORM, recipe, group, report=lambda *_: None, **kwargs)


def _parts(n_images: int, first: int = 0) -> Iterator[Part]:
    order = partial(epoch_order, 7, n_images=n_images)
    return parts(order, steps=range(first, 8), epoch_steps=3, batch_size=7, accumulate=2)


def _seen(held: object, first: int = 0) -> list[torch.Tensor]:
    assert isinstance(held, (StreamedImages, LabelledImages))
    return list(held.batches(_parts(len(held), first)))


def test_streamed_images_are_those_of_memory(
    tiny_recipe: Callable[..., Recipe], group: Processes
) -> None:
    data = _Coloured(23)
    in_memory = _hold(data, tiny_recipe({"data": {"stream": False}}), group)
    assert isinstance(in_memory, LabelledImages)
    expected = _seen(in_memory)
    for workers in (0, 2):
        recipe = tiny_recipe({"data": {"stream": True}, "workers": workers})
        streamed = _hold(data, recipe, group)
        assert isinstance(streamed, StreamedImages)
        assert torch.equal(streamed.labels, in_memory.labels)
        assert (streamed.classes, streamed.name) == (in_memory.classes, in_memory.name)
        assert streamed.fingerprint == in_memory.fingerprint
        before = torch.get_rng_state()
        seen = _seen(streamed)
        assert torch.equal(before, torch.get_rng_state())
        assert len(seen) == len(expected) == 16
        assert all(torch.equal(*pair) for pair in zip(seen, expected, strict=True))


def test_what_memory_does_not_hold_is_streamed(
    tiny_recipe: Callable[..., Recipe], group: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _Coloured(5)
    monkeypatch.setattr(images, "MEMORY_LIMIT", 5 * 3 * 24)
    assert isinstance(_hold(data, tiny_recipe(), group), LabelledImages)
    monkeypatch.setattr(images, "MEMORY_LIMIT", 5 * 3 * 24 - 1)
    assert isinstance(_hold(data, tiny_recipe(), group), StreamedImages)
    with pytest.raises(DataError, match=r"leave data\.stream out"):
        _hold(data, tiny_recipe({"data": {"stream": False}}), group)


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_follow_from_seed_and_place_alone(
    tiny_recipe: Callable[..., Recipe], group: Processes, workers: int
) -> None:
    changes = {"augment": {"crop_padding": 0, "resized_crop": [0.2, 0.6]}}
    held, alone = (
        _hold(_Coloured(23), tiny_recipe({**changes, "workers": n}), group) for n in (workers, 0)
    )
    every, again = _seen(alone), _seen(held, first=3)
    assert all(torch.equal(*pair) for pair in zip(every[6:], again, strict=True))
    tested = _hold(_Coloured(23), tiny_recipe(changes), group, training=False)
    assert isinstance(tested, LabelledImages)  # test images are whole


def test_a_crop_is_a_part_of_the_picture() -> None:
    x, y = np.meshgrid(np.arange(100), np.arange(80))
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    crop = RandomCrop(Transform(size=(20, 20), interpolation="bilinear"), (0.1, 0.5), seed=1)
    corners = set()
    for number in range(20):
        pixels = crop(picture, number).float()
        width, height = (pixels[i].max() - pixels[i].min() for i in (0, 1))
        assert 0.07 < float(width * height) / 8000 < 0.55
        corners.add((float(pixels[0].min()), float(pixels[1].min())))
    assert len(corners) > 10
    assert torch.equal(crop(picture, 3), crop(picture, 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers: int) -> None:
    data = _Coloured(23, broken=20)
    labels = torch.as_tensor(data.labels)
    held = StreamedImages(data, TRANSFORM, labels, ("a", "b", "c"), workers)
    with pytest.raises(ImageError, match="'image 20' cannot be read: it is damaged"):
        _seen(held)


def test_permuted_labels_are_those_of_training_only(
    tiny_recipe: Callable[..., Recipe], group: Processes
) -> None:
    data = _Coloured(60)
    for stream in (True, False):
        recipe = tiny_recipe({"data": {"permute_labels": True, "stream": stream}})
        train, test = (_hold(data, recipe, group, training=which) for which in (True, False))
        assert isinstance(train, (StreamedImages, LabelledImages))
        assert isinstance(test, (StreamedImages, LabelledImages))
        assert test.labels.tolist() == data.labels.tolist()  # type: ignore[union-attr]
        assert train.labels.tolist() != test.labels.tolist()
        assert sorted(train.labels.tolist()) == sorted(test.labels.tolist())


def test_a_part_without_the_highest_class_has_its_name_all_the_same(
    tiny_recipe: Callable[..., Recipe], group: Processes
) -> None:
    data, names = _Coloured(23), ("a", "b", "c", "d", "e", "f", "g")
    for changes in ({"data": {"stream": False}}, {"data": {"stream": True}}):
        recipe = tiny_recipe(changes)
        held = hold(
            data, TRANSFORM, recipe, group, classes=names, report=lambda *_: None, training=False
        )
        assert held.classes == names
