"""Write and read polysem's own checkpoints: weights that say what they are, for `load` and `train`.

A checkpoint is one file that anybody can open without polysem. A ``.safetensors`` file carries
the description as JSON under ``"polysem"`` in its metadata; a ``.pt`` or ``.pth`` file is the dict
``{"polysem": JSON, "state_dict": {name: tensor}}``. Same content, same description, either way.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from torch import Tensor

from polysem.errors import CheckpointError
from polysem.models.transform import Transform
from polysem.models.weights import SUFFIXES, read_tensors, state_digest

__all__ = ["Checkpoint", "is_ours", "parse_checkpoint", "read_checkpoint", "save_checkpoint"]

_KEY = "polysem"
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    model_name : str
        Name in timm's registry.
    model_args : dict
        Arguments for ``timm.create_model(model_name, **model_args)``.
    state_dict : dict of str to Tensor
        On the CPU; float32 again where the file holds float16.
    transform : Transform
        From an image to what the model takes.
    classes : tuple of str or None
        Names of the logits, in order.
    recipe, metrics : dict or None
        How the model was trained and what it reached.
    step : int or None
        Optimiser steps taken.
    dtype : str or None
        ``"float16"`` if the file holds weights rounded to that, else None.
    """

    model_name: str
    model_args: dict[str, Any]
    state_dict: dict[str, Tensor]
    transform: Transform
    classes: tuple[str, ...] | None = None
    recipe: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    step: int | None = None
    dtype: Literal["float16"] | None = None


def save_checkpoint(
    path: str | os.PathLike[str],
    model_name: str,
    model_args: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    *,
    transform: Transform,
    classes: Sequence[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    step: int | None = None,
    dtype: Literal["float16"] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path : path-like
        Ends in ``.pt``, ``.pth`` or ``.safetensors``, which decides the format. An existing file
        is replaced only when the new one is complete; missing folders are made.
    model_name, model_args, state_dict, transform, classes, recipe, metrics, step
        See `Checkpoint`. What is not a tensor must be JSON: numbers, text, lists and dicts with
        text keys. A number that is not finite is stored as null, which JSON can say.
    dtype : "float16", optional
        Round matrices and tables (two axes or more) to float16, for shipping. Vectors (norm
        scales, running statistics) are small and sensitive, and stay float32; integers and
        booleans stay as they are.

    Raises
    ------
    CheckpointError
        If the suffix is another, the description is not JSON, a value is too large for float16,
        or the file cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    tensors = {key: _stored(value, key, dtype, path) for key, value in sorted(state_dict.items())}
    description = {
        "version": _VERSION,
        "model_name": model_name,
        "model_args": dict(model_args),
        "transform": transform.to_dict(),
        "classes": None if classes is None else list(classes),
        "recipe": None if recipe is None else dict(recipe),
        "metrics": None if metrics is None else dict(metrics),
        "step": step,
        "dtype": dtype,
        "sha256": state_digest(tensors),
    }
    try:
        text = json.dumps(_finite(description), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the description for {path} is not JSON: {error}") from None
    _write(path, text, tensors)


def _stored(value: Tensor, key: str, dtype: str | None, path: Path) -> Tensor:
    value = value.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
    if dtype == "float16" and value.is_floating_point():
        if value.dim() < 2:
            return value.float()
        half = value.half()
        if not half.isfinite().all() and value.isfinite().all():
            raise CheckpointError(
                f"{path}: {key} reaches {value.abs().max():.3g}, more than float16 can hold; "
                "save without dtype"
            )
        return half
    return value


def _finite(value: Any) -> Any:
    """Return JSON-like data with None for every number that JSON cannot say."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("every key must be text")
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str, tensors: dict[str, Tensor]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            if path.suffix == ".safetensors":
                file.write(safetensors.torch.save(tensors, metadata={_KEY: text}))
            else:
                torch.save({_KEY: text, "state_dict": tensors}, file)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be written: {reason}") from None
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of polysem's own.

    Raises
    ------
    MissingError
        If there is no such file.
    CheckpointError
        If it is damaged, would run code, or was not written by polysem.
    """
    path = Path(path).expanduser()
    tensors, header = read_tensors(path)
    if not is_ours(header):
        raise CheckpointError(
            f"{path} holds weights but was not written by polysem, so it does not say for which "
            "model; name it: load_model(PATH, arch=NAME)"
        )
    return parse_checkpoint(tensors, header, source=str(path))


def is_ours(header: Mapping[str, Any]) -> bool:
    """Return whether a header from `read_tensors` describes a polysem checkpoint."""
    return isinstance(header.get(_KEY), str)


def parse_checkpoint(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, source: str
) -> Checkpoint:
    """Return the checkpoint that `read_tensors` found, its content checked against its digest.

    Raises
    ------
    CheckpointError
        If the description is damaged or newer than this polysem, or a tensor was altered.
    """
    said = _parsed(header[_KEY])
    version = said.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"{source}: the description of the model is damaged")
    if version > _VERSION:
        raise CheckpointError(
            f"{source} was written by a newer polysem (format {version}, this one reads up to "
            f"{_VERSION}); update polysem"
        )
    if state_digest(tensors) != said.get("sha256"):
        raise CheckpointError(
            f"{source} is damaged: its tensors are not those that were written; copy or download "
            "it again"
        )
    odd = [key for key, fits in _FITS.items() if key not in said or not fits(said[key])]
    if odd:
        raise CheckpointError(
            f"{source}: the description of the model is damaged ({', '.join(odd)})"
        )
    try:
        classes = said["classes"]
        return Checkpoint(
            model_name=said["model_name"],
            model_args=said["model_args"],
            state_dict={key: _restored(value, said["dtype"]) for key, value in tensors.items()},
            transform=Transform.from_dict(said["transform"]),
            classes=None if classes is None else tuple(classes),
            recipe=said["recipe"],
            metrics=said["metrics"],
            step=said["step"],
            dtype=cast('Literal["float16"] | None', said["dtype"]),
        )
    except ValueError as error:
        raise CheckpointError(
            f"{source}: the description of the model is damaged ({error})"
        ) from None


def _parsed(text: str) -> dict[str, Any]:
    """Return a description, or nothing where it is not the JSON that `save_checkpoint` writes."""
    try:
        said = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


#: What each part of a description may be, so that nobody after this file meets another type.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "model_name": lambda value: isinstance(value, str),
    "model_args": lambda value: isinstance(value, dict),
    "transform": lambda value: isinstance(value, dict),
    "classes": lambda value: value is None or _is_words(value),
    "recipe": lambda value: value is None or isinstance(value, dict),
    "metrics": lambda value: value is None or isinstance(value, dict),
    "step": lambda value: value is None or type(value) is int,
    "dtype": lambda value: value in (None, "float16"),
}


def _restored(value: Tensor, dtype: str | None) -> Tensor:
    return value.float() if dtype == "float16" and value.dtype == torch.float16 else value
