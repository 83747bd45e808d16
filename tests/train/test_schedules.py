from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polysem.train.schedules import WARMUP_START, cosine_schedule, drop_head_rate, log_spaced_steps


def _rates(peak: float, total: int, warmup: int, final: float) -> list[float]:
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=peak)
    schedule = cosine_schedule(optimiser, total_steps=total, warmup_steps=warmup, final_lr=final)
    rates = []
    for step in range(total):
        schedule.step_update(step)
        rates.append(float(optimiser.param_groups[0]["lr"]))
    return rates


@given(
    peak=st.floats(1e-4, 1),
    total=st.integers(2, 60),
    part=st.floats(0, 0.9),
    final=st.floats(0, 1e-5),
)
def test_the_rate_follows_its_formula(peak: float, total: int, part: float, final: float) -> None:
    warmup = min(int(part * total), total - 1)
    for step, rate in enumerate(_rates(peak, total, warmup, final)):
        if step < warmup:
            low = WARMUP_START * peak
            expected = low + (peak - low) * step / warmup
        else:
            turn = math.pi * (step - warmup) / (total - warmup)
            expected = final + (peak - final) * (1 + math.cos(turn)) / 2
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_endpoints() -> None:
    rates = _rates(2.0, 1000, 100, 0.0)
    assert rates[0] == pytest.approx(0.02)
    assert rates[100] == 2.0
    assert max(rates) == 2.0
    assert rates[-1] == pytest.approx(0, abs=1e-5)
    assert _rates(2.0, 5, 0, 0.5)[0] == 2.0


def test_a_rate_needs_no_history() -> None:
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.3)
    schedule = cosine_schedule(optimiser, total_steps=40, warmup_steps=7, final_lr=0.0)
    schedule.step_update(23)
    assert optimiser.param_groups[0]["lr"] == _rates(0.3, 40, 7, 0.0)[23]


@given(total=st.integers(1, 10**6), count=st.integers(2, 40))
def test_snapshots_run_from_untrained_to_trained(total: int, count: int) -> None:
    steps = log_spaced_steps(total, count)
    assert steps[0] == 0
    assert steps[-1] == total
    assert len(steps) <= count
    assert list(steps) == sorted(set(steps))


def test_snapshots_are_even_in_the_logarithm() -> None:
    steps = log_spaced_steps(10**6, 14)[1:]
    ratios = [math.log(after / before) for before, after in pairwise(steps[6:])]
    assert ratios == pytest.approx([math.log(10) / 2] * len(ratios), rel=1e-2)


@pytest.mark.parametrize(("count", "steps"), [(0, ()), (1, (7,)), (2, (0, 7)), (3, (0, 1, 7))])
def test_few_snapshots(count: int, steps: tuple[int, ...]) -> None:
    assert log_spaced_steps(7, count) == steps


@given(
    total=st.integers(1, 1000),
    part=st.floats(0, 0.999),
    start=st.floats(0, 0.99),
    end=st.floats(0, 0.99),
)
def test_the_rate_of_dropping_heads_is_a_v(
    total: int, part: float, start: float, end: float
) -> None:
    warmup = int(part * total)
    rates = [
        drop_head_rate(step, total_steps=total, warmup_steps=warmup, start=start, end=end)
        for step in range(total + 1)
    ]
    assert rates[warmup] == 0 and rates[-1] == pytest.approx(end)
    assert rates[0] == (start if warmup else 0)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1], reverse=True)
    assert rates[warmup:] == sorted(rates[warmup:])
