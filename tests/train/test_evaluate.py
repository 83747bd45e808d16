from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from polysem.errors import NonFiniteError
from polysem.models.transform import Transform
from polysem.train.evaluate import evaluate, wilson_interval
from polysem.train.images import LabelledImages
from polysem.train.losses import bce

TRANSFORM = Transform(size=(2, 2))


class _ReadsTheAnswer(nn.Module):
    """Gives logit 4 to the class that the first pixel of an image names; drops it in training."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        answer = (images[:, 0, 0, 0] * 255).round().long()
        logits = 4 * nn.functional.one_hot(answer, 4).float() - 2
        return logits * math.nan if self.broken or self.training else logits


def _images(answers: list[int], labels: list[int]) -> LabelledImages:
    pixels = torch.zeros((len(answers), 3, 2, 2), dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor(answers, dtype=torch.uint8)
    return LabelledImages(pixels, torch.tensor(labels), ("a", "b", "c", "d"), "answers", "f")


def test_counts_and_loss() -> None:
    model = _ReadsTheAnswer().train()
    images = _images([0, 1, 1, 2, 2], [0, 1, 0, 2, 0])
    result = evaluate(model, images, TRANSFORM, bce, batch_size=2)
    assert model.training
    assert model.batches == [2, 2, 1]
    assert (result.n_correct, result.n_images, result.accuracy) == (3, 5, 0.6)
    assert result.class_accuracy[:3].tolist() == [1 / 3, 1, 1]
    assert math.isnan(result.class_accuracy[3])  # no image of this class
    right = 4 * math.log1p(math.exp(-2)) / 4
    wrong = (2 * math.log1p(math.exp(-2)) + 2 * math.log1p(math.exp(2))) / 4
    assert result.loss == pytest.approx((3 * right + 2 * wrong) / 5, rel=1e-6)


def test_a_loss_that_is_not_finite() -> None:
    model = _ReadsTheAnswer(broken=True).train()
    with pytest.raises(NonFiniteError, match="the test loss on answers is nan"):
        evaluate(model, _images([0], [0]), TRANSFORM, bce)
    assert model.training


@given(n_images=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_interval_follows_wilson(n_images: int, share: float) -> None:
    n_correct = round(share * n_images)
    z, p = 1.959963984540054, n_correct / n_images
    centre = (p + z**2 / (2 * n_images)) / (1 + z**2 / n_images)
    half = z * np.sqrt(p * (1 - p) / n_images + z**2 / (4 * n_images**2)) / (1 + z**2 / n_images)
    low, high = wilson_interval(n_correct, n_images)
    assert low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert high == pytest.approx(min(centre + half, 1), abs=1e-9)
