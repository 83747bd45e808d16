from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polysem.train.augment import augment, augment_part, mix
from polysem.train.inputs import Augment, RandAugment
from polysem.train.order import Part, generator_for


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


def _part(step: int, first: int, n: int, total: int) -> Part:
    return Part(step, torch.arange(first, first + n), first, total)


def test_parts_are_changed_as_in_the_whole() -> None:
    images = _images(12, 8, 8)
    recipe = Augment(flip=True, turn=True, crop_padding=2, randaugment=RandAugment())
    whole = augment_part(images, recipe, _part(3, 0, 12, 12), seed=5)
    cut = [
        augment_part(images[first : first + n], recipe, _part(3, first, n, 12), seed=5)
        for first, n in ((0, 5), (5, 7))
    ]
    assert torch.equal(torch.cat(cut), whole)
    assert not torch.equal(whole, augment_part(images, recipe, _part(4, 0, 12, 12), seed=5))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_erasing_blackens_a_rectangle_of_so_many_images(share: float) -> None:
    images = _images(200, 12, 16)
    recipe = Augment(erasing=share)
    made = augment_part(images, recipe, _part(1, 0, 200, 200), seed=2)
    erased = 0
    for before, after in zip(images, made, strict=True):
        black = (after == 0).all(0)
        erased += bool(black.any())
        rows, columns = black.any(1).sum(), black.any(0).sum()
        assert int(black.sum()) == int(rows * columns)
        assert torch.equal(after[:, ~black], before[:, ~black])
    assert share * 200 - 40 * (0 < share < 1) <= erased <= share * 200 + 40 * (0 < share < 1)
    again = augment_part(images, recipe, _part(1, 0, 200, 200), seed=2)
    assert torch.equal(made, again)
    assert torch.equal(images, _images(200, 12, 16))


@given(seed=st.integers(0, 99), step=st.integers(0, 99), alpha=st.floats(0.1, 3))
def test_mixup_mixes_pixels_and_labels_alike(seed: int, step: int, alpha: float) -> None:
    x = torch.rand(6, 3, 2, 5, generator=generator_for(seed, "x", 0))
    images, labels = torch.cat([x, 1 - x], 1), torch.tensor([0, 1, 2, 3, 3, 1])
    part = _part(step, 0, 6, 6)
    mixed, targets = mix(images.clone(), labels, alpha, part, seed=seed, n_classes=4)
    assert targets.sum(1) == pytest.approx(torch.ones(6), abs=1e-6)
    pairs = mixed[:, :3] + mixed[:, 3:]
    assert torch.allclose(pairs, torch.ones_like(pairs), atol=1e-6)
    share = float(targets[0, 0])  # image 0 alone is of class 0, and its partner is of class 1
    for i in range(6):
        expected = share * images[i] + (1 - share) * images[5 - i]
        assert torch.allclose(mixed[i], expected, atol=1e-5)
        hot = torch.nn.functional.one_hot(labels, 4).float()
        assert torch.allclose(targets[i], share * hot[i] + (1 - share) * hot[5 - i], atol=1e-6)
    again, _ = mix(images.clone(), labels, alpha, part, seed=seed, n_classes=4)
    assert torch.equal(mixed, again)


def test_a_share_of_one_mixes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "beta", lambda *_: 1.0)
    images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 1])
    mixed, targets = mix(images.clone(), labels, 0.2, _part(0, 0, 4, 4), seed=0, n_classes=3)
    assert torch.equal(mixed, images)
    assert torch.equal(targets.argmax(1), labels)
    assert targets.amax(1).tolist() == [1, 1, 1, 1]


def test_shares_of_mixup_follow_the_beta_distribution() -> None:
    labels = torch.tensor([0, 1])
    shares = [
        float(
            mix(torch.zeros(2, 1, 1, 1), labels, 0.5, _part(s, 0, 2, 2), seed=1, n_classes=2)[1][
                0, 0
            ]
        )
        for s in range(400)
    ]
    # Beta(1/2, 1/2): mean 1/2, and a third of the mass below 1/4
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.mean([share < 0.25 for share in shares]) == pytest.approx(1 / 3, abs=0.08)
