"""Between training steps and the log: what each step gave, read from the device in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from polysem.errors import NonFiniteError
from polysem.processes import Processes
from polysem.train.state import Progressed
from polysem.train.step import Stepped

__all__ = ["Tally"]


@dataclass
class Tally:
    """Losses and hits of the last steps, read from the device only now and then.

    Reading makes the host wait for a GPU and for other processes, hence `read_every` steps.
    """

    read_every: int
    group: Processes
    loss: float = math.nan
    _waiting: list[tuple[int, Stepped, int]] = field(default_factory=list)

    def add(self, step: int, stepped: Stepped, n_images: int) -> None:
        """Note what a step over so many images (of all processes) gave, without reading it."""
        self._waiting.append((step, stepped, n_images))

    def read(self, progressed: Progressed, *, now: bool) -> None:
        """Add what waits to the sums of this epoch, if it is time.

        Raises
        ------
        NonFiniteError
            If a loss is NaN or infinite: names the first such step and its learning rate.
        """
        if not self._waiting or (len(self._waiting) < self.read_every and not now):
            return
        waiting, self._waiting = self._waiting, []
        losses = self.group.sum(torch.stack([given.loss.float() for _, given, _ in waiting]))
        hits = self.group.sum(torch.stack([given.n_correct for _, given, _ in waiting]))
        read = zip(waiting, losses.tolist(), hits.tolist(), strict=True)
        for (step, given, n_images), loss, n_correct in read:
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"the training loss is {loss} at step {step + 1} (learning rate {given.lr:.3g})"
                )
            progressed.loss_sum += loss * n_images
            progressed.n_correct += n_correct
            progressed.n_seen += n_images
            self.loss = loss
