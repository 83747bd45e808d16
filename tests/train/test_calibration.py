from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysem.train.calibration import expected_calibration_error


def _slow(confidence: list[float], correct: list[bool], bins: int) -> float:
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [
            (sure, right)
            for sure, right in zip(confidence, correct, strict=True)
            if low < sure <= high or (number == 0 and sure == 0)
        ]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            sure = sum(sure for sure, _ in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sure)
    return total


@given(
    # whole hundredths and a prime number of bins: no confidence on a border but 0 and 1
    images=st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=40),
    bins=st.sampled_from([1, 7, 13]),
)
def test_equals_its_formula(images: list[tuple[int, bool]], bins: int) -> None:
    confidence = [hundredths / 100 for hundredths, _ in images]
    correct = [right for _, right in images]
    value = expected_calibration_error(confidence, correct, bins=bins)
    assert value == pytest.approx(_slow(confidence, correct, bins), abs=1e-12)
    assert 0 <= value <= 1


def test_extremes() -> None:
    assert expected_calibration_error([1.0] * 3, [True] * 3) == 0
    assert expected_calibration_error([1.0] * 3, [False] * 3) == 1
    assert math.isnan(expected_calibration_error([], []))


def test_a_calibrated_model_has_little_of_it() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0.1, 1, 50_000)
    assert expected_calibration_error(sure, random.uniform(size=50_000) < sure) < 0.01


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes"):
        expected_calibration_error([0.5], [True, False])
