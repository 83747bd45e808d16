from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polysem import _torchvision
from polysem.train.inputs import RandAugment
from polysem.train.order import generator_for
from polysem.train.randaugment import BINS, operations, rand_augment

_torchvision.repair()

from torchvision.transforms import InterpolationMode, v2  # noqa: E402


def _images(n: int, height: int = 9, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (n, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _torchvisions(image: Tensor, m: int) -> list[Tensor]:
    """Return what torchvision's RandAugment may make of one image, either sign of each."""
    theirs = v2.RandAugment(num_ops=1, magnitude=m)
    height, width = image.shape[-2:]
    made = []
    for name, (magnitudes, signed) in theirs._AUGMENTATION_SPACE.items():
        levels = magnitudes(BINS, height, width)
        level = 0.0 if levels is None else float(levels[m])
        for sign in (1, -1):
            strength = sign * level if signed else level
            made.append(
                theirs._apply_image_or_video_transform(
                    image, name, strength, InterpolationMode.NEAREST, theirs._fill
                )
            )
    return made


@pytest.mark.parametrize("m", [0, 9, 30])
def test_operations_are_torchvisions(m: int) -> None:
    images = _images(2)
    ours = operations(m, 9, 12)
    assert len(ours) == 28
    for image in images:
        expected = _torchvisions(image, m)
        for operation, theirs in zip(ours, expected, strict=True):
            assert torch.equal(operation(image[None])[0], theirs)


@pytest.mark.parametrize(("colour", "n_ways"), [(True, 28), (False, 12)])
def test_every_image_draws_for_itself_and_every_way_is_drawn(colour: bool, n_ways: int) -> None:
    image = _images(1)
    recipe = RandAugment(n=1, m=25, colour=colour)
    made = rand_augment(image.expand(1500, -1, -1, -1), recipe, generator_for(0, "x", 0))
    ways = {bytes(view.numpy()) for view in made}
    possible = {
        bytes(way(image)[0].contiguous().numpy()) for way in operations(25, 9, 12, colour=colour)
    }
    assert ways == possible
    assert 6 < len(ways) <= n_ways
    plain = sum(torch.equal(view, image[0]) for view in made)
    if not colour:
        assert 1500 / 6 * 0.7 < plain < 1500 / 6 * 1.3


def test_no_operation_is_no_change_and_seeds_repeat() -> None:
    images = _images(20)
    assert rand_augment(images, RandAugment(n=0), generator_for(0, "x", 0)) is images
    one, same, other = (
        rand_augment(images, RandAugment(), generator_for(seed, "x", 0)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == torch.uint8
    assert torch.equal(images, _images(20))  # the stored images stay as they are


def test_a_part_is_changed_as_in_the_whole() -> None:
    images = _images(11)
    whole = rand_augment(images, RandAugment(), generator_for(1, "x", 0))
    here = slice(4, 9)
    part = rand_augment(images[here], RandAugment(), generator_for(1, "x", 0), here=here, total=11)
    assert torch.equal(part, whole[here])
