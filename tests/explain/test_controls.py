"""Controls: blind to the model, to the image, or to both."""

import torch
from studied import COLOURS, ColourModel

from polysem.explain.controls import CONTROLS, edges, noise, uniform
from polysem.explain.target import Target

MODEL = ColourModel()
IMAGES = torch.rand(3, 3, 9, 14, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 1])


def test_all_give_maps_of_the_size_and_type_of_the_images() -> None:
    for name, control in CONTROLS.items():
        maps = control(MODEL, IMAGES, CLASSES)
        assert maps.shape == (3, 9, 14), name
        assert maps.dtype == torch.float32, name
        assert torch.equal(maps, control(MODEL, IMAGES, CLASSES)), name
        assert control(MODEL, torch.cat([IMAGES, 1 - IMAGES], 1)[:, :3], Target(2)).ndim == 3


def test_edges_see_the_image_alone() -> None:
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    maps = edges(MODEL, step, Target(0))
    assert (maps[0, :, 3:5] > 0.5).all()
    assert (maps[0, :, [0, 1, 6, 7]] == 0).all()


def test_noise_is_another_for_every_question() -> None:
    maps = noise(MODEL, IMAGES, CLASSES)
    assert abs(maps.mean()) < 0.2
    assert 0.8 < maps.std() < 1.2
    assert not torch.equal(maps[1], maps[2])
    assert not torch.equal(maps, noise(MODEL, IMAGES, CLASSES + 1))
    other = ColourModel()
    with torch.no_grad():
        other.colours.copy_(COLOURS.flip(0))
    assert not torch.equal(maps, noise(other, IMAGES, CLASSES))


def test_uniform_prefers_nothing() -> None:
    assert torch.equal(uniform(MODEL, IMAGES, CLASSES), torch.ones(3, 9, 14))
