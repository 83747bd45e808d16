"""From a model spec to a checkpoint of its B-cosified form, and back: the shell around `bcosify`.

timm's registry builds such networks as ``bcosified``, from the name and arguments of the standard
network, so that a checkpoint of one loads like any other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import nn

from polysem.errors import CheckpointError, SpecError
from polysem.models.bcosify import bcosify
from polysem.models.checkpoint import is_ours, parse_checkpoint, save_checkpoint
from polysem.models.load import LoadedModel, load_model
from polysem.models.registry import create, require_known
from polysem.models.weights import SUFFIXES, fit, read_tensors

__all__ = ["Bcosified", "bcosified", "bcosify_checkpoint"]

_N_COMPARED = 4
#: Logits that should be equal may differ by so much of the largest one, in float32.
_TOLERANCE = 1e-3


@register_model  # type: ignore[untyped-decorator]
def bcosified(
    pretrained: bool = False,
    *,
    base: str = "",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    b: float = 2,
    share: float = 0.0,
    **options: Any,
) -> nn.Module:
    """Build a network of timm's registry and `bcosify` it; how checkpoints of such are read.

    Parameters
    ----------
    pretrained : bool
        Must be false: weights come from a checkpoint.
    base : str
        The standard network's name in timm's registry.
    mean, std, b, share
        As in :func:`bcosify`.
    **options
        Arguments of the standard network.

    Raises
    ------
    SpecError
        If there is no such network, or it cannot be converted.
    """
    given = {key: value for key, value in options.items() if value is not None}
    fetching = {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    if pretrained or fetching & given.keys():
        raise SpecError("bcosified loads no weights by itself; use `polysem bcosify`")
    if not base or base == "bcosified":
        raise SpecError("bcosified needs base=NAME, the standard network that is converted")
    require_known(base)
    return bcosify(create(base, given), mean=mean, std=std, b=b, share=share)


@dataclass(frozen=True)
class Bcosified:
    """What `bcosify_checkpoint` wrote.

    Attributes
    ----------
    path : Path
        The checkpoint.
    base : str
        The standard network's name.
    parameters : int
        Numbers in it.
    difference : float
        Largest difference between its logits and those of the standard network, on random images.
    largest : float
        The largest logit, to compare with.
    """

    path: Path
    base: str
    parameters: int
    difference: float
    largest: float


def bcosify_checkpoint(
    spec: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    b: float = 2,
    share: float = 0.0,
    overwrite: bool = False,
) -> Bcosified:
    """Load a standard model, `bcosify` it and write it as a checkpoint for `load_model`.

    Parameters
    ----------
    spec, weights, arch
        As for :func:`~polysem.models.load.load_model`; of a model in timm's registry.
    out : path-like
        Ends in ``.safetensors``, ``.pt`` or ``.pth``.
    b, share
        As in :func:`~polysem.models.bcosify.bcosify`.
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    SpecError
        If the model cannot be converted, or could not be built again from its name.
    CheckpointError
        If `out` is there already, has another suffix or cannot be written, or the weights cannot
        be read.
    """
    path = Path(out).expanduser()
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} is there already; name another file or use --overwrite")
    loaded = load_model(spec, weights=weights, arch=arch)
    if not timm.is_model(loaded.name):
        raise SpecError(
            f"{spec} is no model of timm's registry, so that its B-cosified form could not be "
            "built again"
        )
    mean, std = loaded.transform.mean, loaded.transform.std
    made = bcosify(loaded.model, mean=mean, std=std, b=b, share=share)
    model_args = {
        **_arguments(loaded, weights),
        "base": loaded.name,
        "mean": list(mean),
        "std": list(std),
        "b": b,
    }
    _require_rebuilt(made, model_args, str(spec))
    difference, largest = _compare(loaded, made)
    if share == 0 and not difference <= _TOLERANCE * max(largest, 1):
        raise SpecError(
            f"{spec} cannot be B-cosified: the converted model's logits differ by {difference:.3g} "
            f"from its own, the largest of which is {largest:.3g}"
        )
    save_checkpoint(
        path,
        "bcosified",
        model_args,
        made.state_dict(),
        transform=replace(loaded.transform, mean=(0.0,) * 3, std=(1.0,) * 3, inverse=True),
        classes=loaded.classes,
        recipe={"bcosified": {"from": str(spec), "sha256": loaded.sha256, "share": share}},
    )
    parameters = sum(parameter.numel() for parameter in made.parameters())
    return Bcosified(path, loaded.name, parameters, difference, largest)


def _arguments(loaded: LoadedModel, weights: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return the arguments that timm builds the loaded model with."""
    arguments: dict[str, Any] = {}
    file = Path(loaded.spec if weights is None else weights).expanduser()
    if file.is_file():
        tensors, header = read_tensors(file)
        if is_ours(header):
            arguments = parse_checkpoint(tensors, header, source=str(file)).model_args
    return {**arguments, "num_classes": getattr(loaded.model, "num_classes", 0)}


def _require_rebuilt(made: nn.Module, model_args: dict[str, Any], spec: str) -> None:
    """Refuse a model that its name and arguments do not give again."""
    try:
        with torch.random.fork_rng(devices=[]):  # the random weights are not kept
            again = create("bcosified", model_args)
        fit(again, made.state_dict(), source=spec, name=str(model_args["base"]))
    except CheckpointError as error:
        raise SpecError(
            f"the B-cosified form could not be built again from its name: {error}"
        ) from None


def _compare(loaded: LoadedModel, made: nn.Module) -> tuple[float, float]:
    """Return the largest difference and the largest logit on a few images of noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (_N_COMPARED, 3, *loaded.transform.size)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    both = replace(loaded.transform, mean=(0.0,) * 3, std=(1.0,) * 3, inverse=True)
    with torch.inference_mode():
        before = loaded.model(loaded.transform.normalize(pixels))
        after = made(both.normalize(pixels))
    return float((before - after).abs().max()), float(before.abs().max())
