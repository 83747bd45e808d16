"""In which order a training shows its images, and which part of each step a process takes.

All of it follows from seed, epoch and step alone, so that a resumed training needs no state of the
data, and the same recipe shows the same images whatever the number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Part",
    "balanced_order",
    "epoch_order",
    "generator_for",
    "parts",
    "permuted",
    "seeded",
]


@dataclass(frozen=True)
class Part:
    """Some of the images of one step, which go through the network together.

    Attributes
    ----------
    step : int
    indices : int64 Tensor [image]
        Which images of the data set, on the CPU.
    first, total : int
        Place of the first of them among the images of the step, and how many those are.
    """

    step: int
    indices: Tensor
    first: int
    total: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def here(self) -> slice:
        """Where this part is among the images of the step."""
        return slice(self.first, self.first + len(self.indices))


def parts(
    order: Callable[[int], Tensor],
    *,
    steps: range,
    epoch_steps: int,
    batch_size: int,
    process: int = 0,
    n_processes: int = 1,
    accumulate: int = 1,
) -> Iterator[Part]:
    """Yield what one process shows in each step, `accumulate` parts a step.

    Parameters
    ----------
    order : callable
        Gives the order of the images [image] of an epoch by its number.
    steps : range
        Numbers of the steps.
    epoch_steps, batch_size : int
        Steps an epoch, and images a step over all processes.
    process, n_processes : int
    accumulate : int
    """
    epoch, shown = -1, torch.empty(0, dtype=torch.int64)
    for step in steps:
        if step // epoch_steps != epoch:
            epoch = step // epoch_steps
            shown = order(epoch)
        place = step % epoch_steps
        batch = shown[place * batch_size : (place + 1) * batch_size]
        cuts = np.linspace(0, len(batch), n_processes * accumulate + 1).round().astype(int)
        mine = cuts[process * accumulate : (process + 1) * accumulate + 1].tolist()
        for start, stop in pairwise(mine):
            yield Part(step, batch[start:stop], start, len(batch))


def epoch_order(seed: int, epoch: int, n_images: int) -> Tensor:
    """Return the order in which epoch number `epoch` shows the images: [image], on the CPU."""
    return torch.randperm(n_images, generator=generator_for(seed, "order", epoch))


def balanced_order(seed: int, epoch: int, labels: Tensor) -> Tensor:
    """Return as many images as there are, every class equally often: [image], on the CPU.

    Classes differ by one image at most (which classes get one more is drawn). Of a class none is
    shown once more before all have been shown as often.

    Parameters
    ----------
    seed, epoch : int
    labels : int64 Tensor [image]
        On the CPU; classes without images are passed over.
    """
    generator = generator_for(seed, "balance", epoch)
    classes = torch.unique(labels)
    share, left = divmod(len(labels), len(classes))
    richer = set(classes[torch.randperm(len(classes), generator=generator)[:left]].tolist())
    chosen = []
    for number in classes.tolist():
        members = (labels == number).nonzero().flatten()
        wanted = share + (number in richer)
        rounds = [
            torch.randperm(len(members), generator=generator)
            for _ in range(-(-wanted // len(members)))
        ]
        chosen.append(members[torch.cat(rounds)[:wanted]] if wanted else members[:0])
    together = torch.cat(chosen)
    return together[torch.randperm(len(together), generator=generator)]


def permuted(labels: Tensor, seed: int) -> Tensor:
    """Return the labels [image] dealt anew at random; every class keeps its number of images."""
    order = torch.randperm(len(labels), generator=generator_for(seed, "labels", 0))
    return labels[order.to(labels.device)]


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose ("order", …) and one epoch or step."""
    generator = torch.Generator()
    generator.manual_seed(_derived(seed, purpose, number))
    return generator


@contextmanager
def seeded(seed: int, purpose: str, number: int) -> Iterator[None]:
    """Let python's and numpy's global generators, which timm draws from, start from a seed.

    They are put back as they were.
    """
    derived = _derived(seed, purpose, number)
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(derived)
    np.random.seed(derived % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _derived(seed: int, purpose: str, number: int) -> int:
    words = np.random.SeedSequence([seed, number, *purpose.encode()]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])
