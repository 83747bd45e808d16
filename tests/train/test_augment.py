from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polysem.train.augment import augment
from polysem.train.images import generator_for
from polysem.train.recipe import Augment


def _images(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (n, 3, height, width)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def _all_flips_and_turns(image: Tensor, recipe: Augment) -> list[Tensor]:
    turned = [image.rot90(k, (1, 2)) for k in (range(4) if recipe.turn else (0,))]
    return [*turned, *(view.flip(-1) for view in turned if recipe.flip)]


def test_nothing_switched_on_changes_nothing() -> None:
    images = _images(5, 6, 7)
    assert augment(images, Augment(), generator_for(0, "augment", 0)) is images


@pytest.mark.parametrize(
    ("recipe", "n_views"),
    [(Augment(flip=True), 2), (Augment(turn=True), 4), (Augment(flip=True, turn=True), 8)],
)
def test_every_view_occurs_and_no_other(recipe: Augment, n_views: int) -> None:
    image = _images(1, 5, 5)[0]
    views = _all_flips_and_turns(image, recipe)
    assert len(views) == n_views
    batch = image.expand(400, 3, 5, 5).clone()
    seen = [
        next(number for number, view in enumerate(views) if torch.equal(view, made))
        for made in augment(batch, recipe, generator_for(1, "augment", 2))
    ]
    counts = torch.bincount(torch.tensor(seen), minlength=n_views)
    assert (counts > 400 / n_views / 2).all()
    assert torch.equal(batch, image.expand(400, 3, 5, 5))  # the stored images stay as they are


def test_a_shift_is_a_crop_of_the_padded_image() -> None:
    image = _images(1, 4, 6)[0]
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    crops = [padded[:, y : y + 4, x : x + 6] for y in range(5) for x in range(5)]
    batch = image.expand(600, 3, 4, 6)
    made = augment(batch, Augment(crop_padding=2), generator_for(1, "augment", 2))
    seen = {
        next(number for number, crop in enumerate(crops) if torch.equal(crop, view))
        for view in made
    }
    assert len(seen) == 25


def test_images_draw_apart_and_a_seed_repeats() -> None:
    images = _images(64, 5, 5)
    recipe = Augment(flip=True, turn=True, crop_padding=1)
    one = augment(images, recipe, generator_for(7, "augment", 3))
    same = augment(images, recipe, generator_for(7, "augment", 3))
    other = augment(images, recipe, generator_for(7, "augment", 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == torch.uint8
    assert one.shape == images.shape
