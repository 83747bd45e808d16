"""Between training steps and the log: what each step gave, read from the device in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polysem.errors import NonFiniteError
from polysem.train.images import epoch_order
from polysem.train.state import Progressed

__all__ = ["Tally"]


@dataclass
class Tally:
    """Losses and hits of the last steps, read from the device only now and then.

    Reading makes the host wait for a GPU, hence `read_every` steps. Also holds the order of the
    images of the running epoch.
    """

    read_every: int
    loss: float = math.nan
    _waiting: list[tuple[int, float, Tensor, Tensor, int]] = field(default_factory=list)
    _order: tuple[int, Tensor] | None = None

    def order(self, seed: int, epoch: int, n_images: int) -> Tensor:
        """Return the order of the images in this epoch."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(seed, epoch, n_images))
        return self._order[1]

    def add(self, step: int, lr: float, loss: Tensor, n_correct: Tensor, n_images: int) -> None:
        """Note what a step gave, without reading it."""
        self._waiting.append((step, lr, loss, n_correct, n_images))

    def read(self, progressed: Progressed, *, now: bool) -> None:
        """Add what waits to the sums of this epoch, if it is time.

        Raises
        ------
        NonFiniteError
            If a loss is NaN or infinite: names the first such step and its learning rate.
        """
        if not self._waiting or (len(self._waiting) < self.read_every and not now):
            return
        losses = torch.stack([waiting[2].float() for waiting in self._waiting]).tolist()
        hits = torch.stack([waiting[3] for waiting in self._waiting]).tolist()
        waiting, self._waiting = self._waiting, []
        for (step, lr, _, _, n_images), loss, n_correct in zip(waiting, losses, hits, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"the training loss is {loss} at step {step + 1} (learning rate {lr:.3g})"
                )
            progressed.loss_sum += loss * n_images
            progressed.n_correct += n_correct
            progressed.n_seen += n_images
        self.loss = losses[-1]
