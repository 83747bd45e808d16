from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from polysem.data.dataset import ImageData
from polysem.data.shapes import Shapes
from polysem.errors import DataError
from polysem.models.transform import Transform
from polysem.train import images
from polysem.train.images import decode

CPU = torch.device("cpu")


class _Grey(ImageData):
    """Images of 5 by 3 pixels, image number i of grey level i."""

    fingerprint = "grey"

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (5, 3), (index, index, index))


def _grey(n: int, *, labels: bool = True) -> _Grey:
    keys = [f"grey/{number}" for number in range(n)]
    return _Grey("grey", keys, labels=np.arange(n) % 2 if labels else None)


def test_images_arrive_at_the_size_of_the_model() -> None:
    seen: list[tuple[int, int]] = []
    held = decode(
        _grey(3),
        Transform(size=(4, 2), crop_pct=1.0),
        device=CPU,
        report=lambda done, total: seen.append((done, total)),
    )
    assert held.pixels.shape == (3, 3, 4, 2)
    assert held.pixels.dtype == torch.uint8
    assert held.pixels.float().mean((1, 2, 3)).tolist() == [0, 1, 2]
    assert held.labels.tolist() == [0, 1, 0]
    assert held.classes == ("0", "1")
    assert held.fingerprint == "grey"
    assert len(held) == 3
    assert seen == [(3, 3)]


def test_an_image_of_the_right_size_is_not_touched() -> None:
    data = Shapes("train", n=600, size=16)
    held = decode(data, Transform(size=(16, 16), crop_pct=1.0), device=CPU)
    pixels, labels = data.array()
    assert np.array_equal(held.pixels.permute(0, 2, 3, 1).numpy(), pixels)
    assert np.array_equal(held.labels.numpy(), labels)
    assert held.classes == data.classes


def test_what_cannot_be_learned_from_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = Transform(size=(4, 2))
    with pytest.raises(DataError, match="no labels"):
        decode(_grey(3, labels=False), transform, device=CPU)
    with pytest.raises(DataError, match="no images"):
        decode(_grey(0), transform, device=CPU)
    monkeypatch.setattr(images, "MEMORY_LIMIT", 71)
    with pytest.raises(DataError, match=r"or set data\.train_limit"):
        decode(_grey(3), transform, device=CPU)
