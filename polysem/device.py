"""Where computing is done: one word for the device, checked before anything is started."""

from __future__ import annotations

import torch

from polysem.errors import SpecError
from polysem.launch import launched

__all__ = ["choose_device", "own_device"]


def choose_device(name: str) -> torch.device:
    """Return the device that a name means: auto (a GPU if there is one), cpu, cuda, cuda:N.

    Of several processes that were started together each gets a GPU of its own.

    Raises
    ------
    SpecError
        If there is no such device here, or it lacks float64, which statistics need.
    """
    launch = launched()
    if name in ("auto", "cuda") and torch.cuda.is_available() and launch.count > 1:
        return torch.device("cuda", launch.local % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        # torch asserts that CUDA was compiled in; Apple's GPUs have no float64
        raise SpecError(f"device {name!r} cannot be used here; use auto, cpu or cuda") from None
    return device


def own_device(name: str) -> torch.device:
    """Return the same for work that processes share: each takes a GPU of its own.

    Raises
    ------
    SpecError
        As `choose_device`, or if several processes would take one GPU.
    """
    if launched().count > 1 and ":" in name:
        raise SpecError(f"each process takes a GPU of its own: give cuda or auto, not {name!r}")
    return choose_device(name)
