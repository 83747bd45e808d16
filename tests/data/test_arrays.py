"""Arrays of pixels become RGB pictures, and hash by what they show."""

from __future__ import annotations

import pickle
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pytest

from polysem.data.arrays import ArrayData, Pixels
from polysem.data.blocks import Block


@dataclass(frozen=True)
class InBlocks:
    step: int
    shape: tuple[int, ...]

    def __call__(self, part: int) -> Generator[Block[Pixels], None, None]:
        pixels = np.random.default_rng(part).integers(0, 256, (5, *self.shape), dtype=np.uint8)
        for first in range(0, 5, self.step):
            rows = pixels[first : first + self.step]
            yield Block(rows, len(rows), rows.nbytes)


def data(step: int, shape: tuple[int, ...]) -> ArrayData:
    keys = [str(i) for i in range(10)]
    return ArrayData("spec", keys, counts=[5, 5], open_part=InBlocks(step, shape))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 3)])
def test_pixels(shape: tuple[int, ...]) -> None:
    image = data(2, shape).read(7)
    expected = np.random.default_rng(1).integers(0, 256, (5, *shape), dtype=np.uint8)[2]
    if len(shape) == 2:
        expected = np.stack([expected] * 3, axis=2)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_fingerprint_does_not_depend_on_blocks_or_copies() -> None:
    one = data(2, (2, 3))
    assert data(5, (2, 3)).fingerprint == one.fingerprint
    assert pickle.loads(pickle.dumps(one)).fingerprint == one.fingerprint
    assert data(2, (3, 2, 3)).fingerprint != one.fingerprint
