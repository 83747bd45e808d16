"""Pictures as a model sees them, their masks, and whether their labels are the model's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_cnn
from studied import colour_model

from polysem.data.dataset import ImageData
from polysem.data.shapes import Shapes
from polysem.data.sources import load_data
from polysem.errors import DataError, ImageError
from polysem.explain.pictures import (
    confidence_kind,
    logits_of,
    object_masks,
    open_model,
    read_pictures,
    require_same_classes,
)
from polysem.models.transform import Transform

SMALL = Transform(size=(24, 24), crop_pct=1.0)


class Photos(ImageData):
    """Grey pictures, some of which cannot be read."""

    fingerprint = "photos"

    def __init__(self, n: int = 4, *, broken: tuple[int, ...] = (), labels: Any = None) -> None:
        super().__init__("photos", [f"p{i}" for i in range(n)], labels=labels)
        self.broken = broken

    def read(self, index: int) -> Image.Image:
        if index in self.broken:
            raise ImageError(self.keys[index], "cut off")
        return Image.new("RGB", (30, 40), (index, index, index))


def test_what_cannot_be_read_is_set_aside() -> None:
    read = read_pictures(Photos(5, broken=(0, 3), labels=[4, 3, 2, 1, 0]), SMALL, limit=4)
    assert read.indices.tolist() == [1, 2]
    assert read.pixels.shape == (2, 3, 24, 24)
    assert read.pixels[:, 0, 0, 0].tolist() == [1, 2]
    assert read.labels is not None
    assert read.labels.tolist() == [3, 2]
    assert [error.key for error in read.skipped] == ["p0", "p3"]
    with pytest.raises(DataError, match="no image that can be read: image 'p0'"):
        read_pictures(Photos(2, broken=(0, 1)), SMALL, limit=None)


def test_a_spec_gives_a_random_sample() -> None:
    read = read_pictures("shapes:test?n=50&size=24", SMALL, limit=5, seed=3)
    again = load_data("shapes:test?n=50&size=24", limit=5, seed=3)
    assert list(read.source.keys) == list(again.keys)


def test_masks_are_the_visible_largest_object() -> None:
    data = Shapes("test", n=40, size=24, label="colour")
    read = read_pictures(data, SMALL, limit=None)
    masks = object_masks(read, SMALL)
    assert masks is not None
    for i in range(40):
        named = data.masks(i)[data.concepts.index(data.classes[data.labels[i]])]
        assert masks[i].any()
        assert not (masks[i].numpy() & ~named).any()  # it lies within all that has the colour
    alone = [i for i in range(40) if len(data.scene(i).things) == 1]
    for i in alone:
        background = data.masks(i)[[c.endswith("background") for c in data.concepts]].any(0)
        np.testing.assert_array_equal(masks[i].numpy(), ~background)


def test_masks_follow_subsets_and_the_crop() -> None:
    whole = Shapes("test", n=30, size=48)
    part = load_data("shapes:test?n=30&size=48", limit=7, seed=1)
    crop = Transform(size=(24, 24), crop_pct=0.75, interpolation="bilinear")
    read = read_pictures(part, crop, limit=None)
    masks = object_masks(read, crop)
    assert masks is not None
    for key, mask in zip(part.keys, masks, strict=True):
        number = list(whole.keys).index(key)
        large = object_masks(
            replace(read, source=whole, indices=np.array([number])),
            Transform(size=(32, 32), crop_pct=1.0, interpolation="bilinear"),
        )
        assert large is not None
        assert torch.equal(mask, large[0, 4:28, 4:28])


def test_other_data_have_no_masks() -> None:
    assert object_masks(read_pictures(Photos(), SMALL, limit=None), SMALL) is None


def test_labels_must_be_the_models_classes() -> None:
    loaded = colour_model()
    right = read_pictures("shapes:test?n=4&label=colour", SMALL, limit=None)
    assert torch.equal(require_same_classes(loaded, right, 8), right.labels)
    with pytest.raises(DataError, match=r"8 others \(circle, square, triangle"):
        require_same_classes(loaded, read_pictures("shapes:test?n=4", SMALL, limit=None), 8)
    with pytest.raises(DataError, match="no labels"):
        require_same_classes(loaded, read_pictures(Photos(), SMALL, limit=None), 8)
    unnamed = replace(loaded, classes=None)
    two = read_pictures(Photos(4, labels=[0, 1, 1, 0]), SMALL, limit=None)
    with pytest.raises(DataError, match="8 outputs, photos 2 classes"):
        require_same_classes(unnamed, two, 8)
    assert torch.equal(require_same_classes(unnamed, two, 2), two.labels)
    few = read_pictures(Photos(9, labels=[0] * 8 + [7]), SMALL, limit=2)
    assert few.labels is not None and 7 not in few.labels  # the sample misses the highest class
    assert torch.equal(require_same_classes(unnamed, few, 8), few.labels)


def test_confidence_follows_the_loss_or_the_layers() -> None:
    loaded = colour_model()
    assert confidence_kind(loaded) == "softmax"
    assert confidence_kind(replace(loaded, info={"recipe": {"loss": "bce"}})) == "sigmoid"
    for info in ({}, {"recipe": {"loss": "auto"}}, {"recipe": None}):
        assert confidence_kind(replace(loaded, info=info)) == "softmax"
        bcos = replace(loaded, info=info, model=small_cnn("bcos_resnet20_32"))
        assert confidence_kind(bcos) == "sigmoid"


def test_logits_do_not_depend_on_batches() -> None:
    loaded = open_model(colour_model(size=24), "cpu")
    pixels = read_pictures("shapes:test?n=7", SMALL, limit=None).pixels
    one = logits_of(loaded.model, loaded.transform, pixels, batch_size=3)
    torch.testing.assert_close(one, logits_of(loaded.model, loaded.transform, pixels))
