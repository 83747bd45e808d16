"""A probe in a process of its own that shares all that is loaded here, for the benches."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

__all__ = ["start_forked"]


def start_forked(work: Callable[..., None], *args: Any) -> BaseProcess:
    """Start a process that does some work on one CPU thread, and return it.

    It is forked: nothing is imported or loaded again, so that it is at work at once.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_alone, args=(work, *args), daemon=True
    )
    with warnings.catch_warnings():  # Python would rather not fork beside threads; none is needed
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _alone(work: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    work(*args)
