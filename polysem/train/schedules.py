"""What changes over a training: the learning rate, and the moments at which weights are kept."""

from __future__ import annotations

import math

import numpy as np
import torch

from polysem import _torchvision

_torchvision.repair()

from timm.scheduler import CosineLRScheduler  # noqa: E402

__all__ = ["WARMUP_START", "cosine_schedule", "drop_head_rate", "log_spaced_steps"]

WARMUP_START = 0.01
"""Where the warm-up begins, as a part of the peak learning rate (B-cos ViTs: 1 %)."""


def cosine_schedule(
    optimiser: torch.optim.Optimizer, *, total_steps: int, warmup_steps: int, final_lr: float
) -> CosineLRScheduler:
    """Return timm's schedule: up to the peak in a line, then down to `final_lr` in half a cosine.

    Call ``step_update(step)`` before step number `step` (counted from 0); the rate depends on
    nothing but that number, so a resumed training needs no state of the schedule.

    Parameters
    ----------
    optimiser : Optimizer
        Holds the peak rate (the rates of its groups now).
    total_steps : int
        Steps in all, warm-up included.
    warmup_steps : int
        Steps of the climb, which starts at `WARMUP_START` of the peak; fewer than `total_steps`.
    final_lr : float
        The rate that would be reached at step `total_steps`.
    """
    peak = optimiser.param_groups[0]["lr"]
    schedule = CosineLRScheduler(
        optimiser,
        t_initial=max(total_steps - warmup_steps, 1),
        lr_min=final_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=peak * WARMUP_START,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    schedule.step_update(0)
    return schedule


def drop_head_rate(
    step: int, *, total_steps: int, warmup_steps: int, start: float, end: float
) -> float:
    """Return the rate at which heads are left out in step number `step` (counted from 0).

    The V of Scheduled DropHead (arXiv 2004.13342): from `start` straight down to 0 when the
    warm-up of the learning rate ends, then straight up to `end` at step `total_steps`.

    >>> [drop_head_rate(t, total_steps=8, warmup_steps=4, start=0.2, end=0.4) for t in (0, 4, 6)]
    [0.2, 0.0, 0.2]
    """
    if step < warmup_steps:
        return start * (1 - step / warmup_steps)
    return end * (step - warmup_steps) / max(total_steps - warmup_steps, 1)


def log_spaced_steps(total_steps: int, count: int) -> tuple[int, ...]:
    """Return at most `count` steps from 0 (untrained) to `total_steps`, even in log(step).

    Steps that round to the same number are kept once, which thins out only the first few.

    >>> log_spaced_steps(1000, 5)
    (0, 1, 10, 100, 1000)
    """
    if count <= 0:
        return ()
    if count == 1:
        return (total_steps,)
    exponents = (
        np.linspace(0, math.log(total_steps), count - 1) if count > 2 else [math.log(total_steps)]
    )
    return tuple(sorted({0, total_steps, *(round(math.exp(e)) for e in exponents)}))
