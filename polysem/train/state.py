"""What an interrupted training goes on from: written now and then, whole or not at all.

A resumed training takes the same steps to the same bits as one that was never interrupted (same
machine and number of threads). The order of images, augmentation and learning rate follow from
the seed and the step; all else that changes is here.
"""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polysem.errors import CheckpointError, NonFiniteError, RunError
from polysem.processes import Processes
from polysem.train.recipe import Recipe, recipe_to_dict

__all__ = [
    "Progressed",
    "State",
    "check_same_training",
    "check_weights",
    "load_state",
    "save_state",
]

_VERSION = 2
_FREE = ("threads", "workers", "checkpoint_every", "notes")
"""Recipe keys that may change between an interruption and the resumption."""
_DAMAGE = (
    OSError, RuntimeError, EOFError, TypeError, KeyError, ValueError, pickle.UnpicklingError
)  # fmt: skip


@dataclass
class Progressed:
    """How far a training has come.

    Attributes
    ----------
    step : int
        Steps taken.
    wall_s, cpu_s : float
        Seconds spent so far, interrupted runs included; of the clock, and of all CPU cores.
    loss_sum : float
        Sum of the loss over the images of this epoch so far.
    n_correct, n_seen : int
        Images of this epoch that were recognised, and shown, while training.
    train_s : float
        Seconds of this epoch spent on training steps.
    """

    step: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    loss_sum: float = 0.0
    n_correct: int = 0
    n_seen: int = 0
    train_s: float = 0.0

    def next_epoch(self) -> None:
        """Forget what is counted by epoch."""
        self.loss_sum, self.n_correct, self.n_seen, self.train_s = 0.0, 0, 0, 0.0


@dataclass(frozen=True)
class State:
    """What a state file holds.

    Attributes
    ----------
    recipe : dict
        As `recipe_to_dict` gives it.
    fingerprint : str
        Of the training images.
    model, optimiser : dict
        Their state dicts.
    progressed : dict
        The fields of `Progressed`.
    average : dict or None
        State dict of the moving average of the weights, where there is one.
    cpu_rngs, cuda_rngs : list of uint8 Tensor
        torch's generators, which dropout draws from, of each process; none where no GPU was used.
    version : int
        Of this layout.
    """

    recipe: dict[str, Any]
    fingerprint: str
    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    progressed: dict[str, Any]
    average: dict[str, Tensor] | None
    cpu_rngs: list[Tensor]
    cuda_rngs: list[Tensor]
    version: int = _VERSION


def check_weights(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError, naming the parameter, if a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NonFiniteError(f"the weights {name} are not finite after step {step}")


def save_state(
    path: Path,
    recipe: Recipe,
    fingerprint: str,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    progressed: Progressed,
    *,
    average: nn.Module | None,
    group: Processes,
) -> None:
    """Write all that a training needs to go on; the file before stays until this one is whole.

    All processes of the group call it, and the first one writes.

    Raises
    ------
    NonFiniteError
        If the weights are not finite; the file before then stays.
    RunError
        If the file cannot be written.
    """
    check_weights(model, progressed.step)
    on_gpu = next(model.parameters()).is_cuda
    cpu_rngs = group.collect(torch.get_rng_state())
    cuda_rngs = group.collect(torch.cuda.get_rng_state(group.device)) if on_gpu else []
    if not group.first:
        return
    state = State(
        recipe=recipe_to_dict(recipe),
        fingerprint=fingerprint,
        model=model.state_dict(),
        optimiser=optimiser.state_dict(),
        progressed=vars(progressed),
        average=None if average is None else average.state_dict(),
        cpu_rngs=cpu_rngs,
        cuda_rngs=cuda_rngs,
    )
    buffer = io.BytesIO()  # so that a full disk shows as OSError, not as torch's own error
    torch.save(vars(state), buffer)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(buffer.getbuffer())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def load_state(path: Path, recipe: Recipe, fingerprint: str, *, n_processes: int = 1) -> State:
    """Read a state and check that it belongs to this recipe and this data.

    Raises
    ------
    CheckpointError
        If the file is damaged or was not written by `save_state`.
    RunError
        If it belongs to another recipe, other data or another number of processes.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        known = kept["version"] == _VERSION
        state = State(**kept) if known else None
    except _DAMAGE:
        raise CheckpointError(
            f"{path} is damaged, so this training cannot be resumed; start it anew"
        ) from None
    if state is None:
        raise CheckpointError(f"{path} was written by another version of polysem; start anew")
    check_same_training(state.recipe, recipe, path)
    if state.fingerprint != fingerprint:
        raise RunError(
            f"the training data {recipe.data.train} has changed since {path} was written; "
            "start the training anew"
        )
    if len(state.cpu_rngs) != n_processes:
        raise RunError(
            f"{path} was written by {len(state.cpu_rngs)} processes, and this training has "
            f"{n_processes}; resume it with as many"
        )
    return state


def check_same_training(saved: dict[str, Any], recipe: Recipe, path: Path) -> None:
    """Raise RunError, naming the keys, if `recipe` would train otherwise than `saved` did."""
    now = _flat(recipe_to_dict(recipe))
    before = _flat(saved)
    differ = [
        f"{key} ({before.get(key)!r} there, {now.get(key)!r} here)"
        for key in sorted({*now, *before})
        if key not in _FREE and now.get(key) != before.get(key)
    ]
    if differ:
        raise RunError(
            f"{path} was trained with another recipe, so it cannot go on with this one; "
            f"they differ in {', '.join(differ)}"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat
