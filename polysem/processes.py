"""One process or many: what `accelerate` needs to know, and what is asked of it.

Started by ``accelerate launch`` (or torchrun) long work finds its companions by itself; started
plainly it runs alone, on the device it was given. (A probe needs no `accelerate`: its processes
meet on the disk, see `polysem.store.journal`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, is_initialized
from accelerate.utils import gather_object
from torch import Tensor, nn

from polysem.device import own_device

__all__ = ["Processes", "processes"]

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of one piece of work, seen from one of them.

    Attributes
    ----------
    device : torch.device
        Where this one computes.
    accelerator : Accelerator
    """

    device: torch.device
    accelerator: Accelerator

    @property
    def count(self) -> int:
        """How many processes work together."""
        return int(self.accelerator.num_processes)

    @property
    def number(self) -> int:
        """Which of them this is."""
        return int(self.accelerator.process_index)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.number == 0

    def share(self, network: nn.Module) -> nn.Module:
        """Return the network, its gradients averaged over processes where there are several."""
        if self.count == 1:
            return network
        shared: nn.Module = self.accelerator.prepare(network)
        return shared

    def apart(self, network: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which gradients stay those of this process."""
        context: AbstractContextManager[object] = self.accelerator.no_sync(network)
        return context

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of a mean loss; their sum over all is meant."""
        # torch averages the gradients of processes
        self.accelerator.backward(loss * self.count if self.count > 1 else loss)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes."""
        if self.count == 1:
            return values
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def join(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, one below the other; all have as many."""
        if self.count == 1:
            return rows
        joined: Tensor = self.accelerator.gather(rows)
        return joined

    def collect(self, value: T) -> list[T]:
        """Return what each process gives, in their order; tensors have to be on the CPU."""
        if self.count == 1:
            return [value]
        collected: list[T] = gather_object([value])
        return collected

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Find the other processes, and leave `accelerate` as it was found.

    Parameters
    ----------
    device : str
        As for `own_device`. Of several processes on GPUs each takes its own, so that one
        cannot be named.

    Raises
    ------
    SpecError
        If there is no such device, or one was named where each process has its own.
    """
    chosen = own_device(device)
    already = is_initialized()
    accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision="no")
    try:
        yield Processes(chosen, accelerator)
    finally:
        if not already:  # the next training may choose another device
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
