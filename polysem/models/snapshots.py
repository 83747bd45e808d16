"""Snapshots of one network in training: which files they are, in which order, and whether they fit.

Everything is looked at before any work is done, one snapshot in memory at a time.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from polysem.errors import CheckpointError, MissingError, SpecError
from polysem.models.load import LoadedModel, load_model

__all__ = ["OrderedBy", "Snapshot", "find_snapshots"]

#: Where steps come from: what the checkpoints say of themselves, or numbers in their names.
OrderedBy: TypeAlias = Literal["step", "name"]

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Snapshot:
    """One snapshot.

    Attributes
    ----------
    step : int
        Optimiser steps taken, or the number in its name.
    checkpoint : str
        The file or folder.
    sha256 : str
        Digest of its weights, as of a `LoadedModel`.
    """

    step: int
    checkpoint: str
    sha256: str


def find_snapshots(
    checkpoints: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    arch: str | None = None,
) -> tuple[list[Snapshot], OrderedBy]:
    """Return the snapshots that globs name, earliest first, and what orders them.

    Checkpoints of polysem's training say their step. Others are ordered by the one number that
    their names differ in, as in ``epoch_1.pt``, ``epoch_2.pt``.

    Parameters
    ----------
    checkpoints : str, path-like, or iterable of them
        Globs of files, or of folders, that `load_model` takes.
    arch : str, optional
        timm's name of the architecture, for files that do not say.

    Raises
    ------
    MissingError
        If a glob matches nothing.
    SpecError
        If there are fewer than two snapshots, or their order cannot be told.
    CheckpointError
        If a snapshot cannot be read, or is not of the same network as the first.
    NonFiniteError
        If weights hold NaN or infinity.
    """
    paths = _matched(checkpoints)
    if len(paths) < 2:
        raise SpecError(
            f"{paths[0]} is the only snapshot; units evolve between two or more: name them with a "
            "glob such as 'run/snapshots/*.safetensors'"
        )
    first: tuple[str, _Network] | None = None
    said: list[int | None] = []
    digests = []
    for path in paths:
        loaded = load_model(path, arch=arch)
        network = _Network.of(loaded)
        if first is None:
            first = path, network
        elif reason := network.unlike(first[1]):
            raise CheckpointError(
                f"{path} is not a snapshot of the same network as {first[0]}: {reason}; name the "
                "snapshots of one training"
            )
        said.append(loaded.info.get("step"))
        digests.append(loaded.sha256)
    known = [step for step in said if step is not None]
    ordered_by: OrderedBy = "step" if len(known) == len(paths) else "name"
    steps = known if ordered_by == "step" else _steps_in(paths)
    found = sorted(
        (Snapshot(*each) for each in zip(steps, paths, digests, strict=True)),
        key=lambda snapshot: snapshot.step,
    )
    for a, b in pairwise(found):
        if a.step == b.step:
            raise SpecError(
                f"{a.checkpoint} and {b.checkpoint} are both of step {a.step}, so that their order "
                "is not clear; leave one of them out"
            )
    return found, ordered_by


@dataclass(frozen=True)
class _Network:
    """What all snapshots of a training have in common."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    transform: object
    classes: tuple[str, ...] | None

    @classmethod
    def of(cls, loaded: LoadedModel) -> _Network:
        shapes = {name: tuple(value.shape) for name, value in loaded.model.state_dict().items()}
        return cls(loaded.name, shapes, loaded.transform, loaded.classes)

    def unlike(self, other: _Network) -> str | None:
        """Return how this network differs from another, or None if it does not."""
        if self.name != other.name:
            return f"it is a {self.name}, the other a {other.name}"
        for name in [*self.shapes, *other.shapes]:
            mine, theirs = (each.shapes.get(name) for each in (self, other))
            if mine != theirs:
                said = [str(list(s)) if s is not None else "not there" for s in (mine, theirs)]
                return f"its units are others ({name} is {said[0]}, in the other {said[1]})"
        if self.transform != other.transform:
            return f"it takes other images ({self.transform}, the other {other.transform})"
        if self.classes != other.classes:
            return "it names other classes"
        return None


def _matched(
    checkpoints: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[str]:
    """Return the paths that globs match, each once, in the order of names."""
    if isinstance(checkpoints, (str, os.PathLike)):
        checkpoints = [checkpoints]
    found: dict[str, None] = {}
    for pattern in checkpoints:
        text = os.path.expanduser(os.fspath(pattern))
        here = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not here:
            raise MissingError(f"no checkpoint matches {text!r}")
        found |= dict.fromkeys(os.path.normpath(path) for path in here)
    if not found:
        raise MissingError("no checkpoints are named")
    return list(found)


def _steps_in(paths: Sequence[str]) -> list[int]:
    """Return the one number that names differ in.

    >>> _steps_in(["vit16/epoch_2.pt", "vit16/epoch_10.pt"])
    [2, 10]
    """
    words = {_NUMBER.sub("#", path) for path in paths}
    numbers = [[int(number) for number in _NUMBER.findall(path)] for path in paths]
    varying = [column for column in zip(*numbers, strict=False) if len(set(column)) > 1]
    if len(words) == 1 and len(varying) == 1:
        return list(varying[0])
    how = "in more than one number" if len(words) == 1 and varying else "otherwise than in a number"
    raise SpecError(
        f"the order of {paths[0]} and {len(paths) - 1} others cannot be told: they do not all say "
        f"their training step, and their names differ {how}; name them like step_1.pt, "
        "step_2.pt"
    )
