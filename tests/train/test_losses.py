from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polysem.train.losses import LOSSES, Loss, bce, confidence, cross_entropy


def _slow_bce(logits: Tensor, labels: Tensor, *, training: bool) -> float:
    n_images, n_classes = logits.shape
    total = 0.0
    for image in range(n_images):
        for number in range(n_classes):
            target = 1.0 if number == labels[image] else 0.0
            if training:
                target = max(target, 1 / n_classes)
            p = 1 / (1 + math.exp(-float(logits[image, number])))
            total -= target * math.log(p) + (1 - target) * math.log(1 - p)
    return total / (n_images * n_classes)


def _slow_cross_entropy(logits: Tensor, labels: Tensor, *, training: bool) -> float:
    del training
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total -= row[label] - math.log(sum(math.exp(logit) for logit in row))
    return total / len(labels)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("loss", "slow"), [(bce, _slow_bce), (cross_entropy, _slow_cross_entropy)])
@given(seed=st.integers(0, 1000), n_images=st.integers(1, 5), n_classes=st.integers(2, 7))
def test_equals_its_formula(
    loss: Loss, slow: Loss, training: bool, seed: int, n_images: int, n_classes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n_images, n_classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, n_classes, (n_images,), generator=generator)
    expected = slow(logits, labels, training=training)
    value = float(loss(logits, labels, training=training))
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)  # they compute in float32


def test_clamped_targets_are_met_at_the_logit_of_chance() -> None:
    n_classes = 6
    logits = torch.full((1, n_classes), -math.log(n_classes - 1), requires_grad=True)
    bce(logits, torch.tensor([2]), training=True).backward()
    assert logits.grad is not None
    others = [number for number in range(n_classes) if number != 2]
    assert logits.grad[0, others] == pytest.approx(torch.zeros(n_classes - 1), abs=1e-7)
    assert logits.grad[0, 2] < 0


@pytest.mark.parametrize("training", [True, False])
def test_shares_that_are_all_or_nothing_are_labels(training: bool) -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 1, 1, 2])
    shares = torch.nn.functional.one_hot(labels, 4).float()
    for loss in LOSSES.values():
        hard, soft = (loss(logits, given, training=training) for given in (labels, shares))
        assert float(soft) == pytest.approx(float(hard), rel=1e-6)


def test_confidence_is_that_of_the_loss() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    total = math.exp(2) + 1 + math.exp(-1)
    assert float(confidence(logits, cross_entropy)) == pytest.approx(math.exp(2) / total)
    assert float(confidence(logits, bce)) == pytest.approx(1 / (1 + math.exp(-2)))


def test_half_precision_logits_are_widened() -> None:
    logits = torch.tensor([[9.0, -9.0, 0.5]])
    for loss in LOSSES.values():
        wide = loss(logits, torch.tensor([0]), training=False)
        half = loss(logits.bfloat16(), torch.tensor([0]), training=False)
        assert half.dtype == torch.float32
        assert half == wide
