"""Where computing is done: one word for the device, checked before anything is started."""

from __future__ import annotations

import torch

from polysem.errors import SpecError

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """Return the device that a name means: auto (a GPU if there is one), cpu, cuda, cuda:N.

    Raises
    ------
    SpecError
        If there is no such device here, or it lacks float64, which statistics need.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        # torch asserts that CUDA was compiled in; Apple's GPUs have no float64
        raise SpecError(f"device {name!r} cannot be used here; use auto, cpu or cuda") from None
    return device
