"""What tests of the training loop share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["nearly_the_same"]


def nearly_the_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether weights agree up to the order of sums.

    Adam moves a weight by about the learning rate whatever the size of its gradient, so where that
    is nothing but rounding (biases of keys) weights may part; these are few.
    """
    assert one.keys() == other.keys()
    gaps = torch.cat([(one[key] - other[key]).abs().flatten() for key in one])
    return float((gaps > 2e-6).float().mean()) < 0.02
