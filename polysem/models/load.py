"""Turn a model spec into a model ready to be studied: the first word of every command.

Every form of spec ends in the same `LoadedModel`: weights that are finite and fit, the transform
that belongs to them, and a digest that says which weights these are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from polysem.device import choose_device
from polysem.errors import CheckpointError, MissingError, SpecError, did_you_mean
from polysem.models.checkpoint import Checkpoint, is_ours, parse_checkpoint
from polysem.models.cnn import official_resnet
from polysem.models.official import official_vit
from polysem.models.registry import classes_in, create, evaluation_transform, require_known
from polysem.models.transform import Transform
from polysem.models.weights import (
    SUFFIXES,
    fit,
    read_tensors,
    require_finite,
    require_fit,
    state_digest,
)

__all__ = ["LoadedModel", "load_model"]

_FORMS = (
    "timm:NAME (random weights), timm:NAME?pretrained, hf-hub:ORG/NAME, bcos:NAME with "
    f"weights=FILE, a Hugging Face ViT folder, or a file ending in {', '.join(SUFFIXES)}"
)

#: Pixels on a side that a checkpoint may ask for, however small its network.
_LARGEST_SIDE = 1024

# Arguments of timm.create_model that fetch or read something: no checkpoint may set them.
_RESERVED = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}


@dataclass(frozen=True)
class LoadedModel:
    """A model and what belongs to it.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode, on the device asked for.
    transform : Transform
        From an image to what `model` takes.
    classes : tuple of str or None
        Names of the logits, in order; None where nothing names them.
    name : str
        The architecture, by timm's name where it has one.
    spec : str
        What was asked for.
    sha256 : str
        Digest of names, types, shapes and bytes of the weights (`state_digest`).
    info : dict
        ``recipe``, ``metrics`` and ``step`` of a polysem checkpoint; else empty.
    build : callable or None
        Builds the same architecture with weights newly drawn from torch's global generator; None
        for a model that was not loaded but put together by hand.
    """

    model: nn.Module
    transform: Transform
    classes: tuple[str, ...] | None
    name: str
    spec: str
    sha256: str
    info: dict[str, Any] = field(default_factory=dict)
    build: Callable[[], nn.Module] | None = None


@dataclass(frozen=True)
class _Found:
    model: nn.Module
    transform: Transform
    name: str
    build: Callable[[], nn.Module]
    classes: tuple[str, ...] | None = None
    info: dict[str, Any] = field(default_factory=dict)


def load_model(
    spec: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load a model; nothing in a weights file is ever run.

    Parameters
    ----------
    spec : str or path-like
        - ``timm:NAME``: a model of timm's registry, polysem's own among them, with random weights
          drawn from torch's global generator, or with those in `weights`;
          ``timm:NAME?pretrained``: with timm's weights, downloaded at first use;
        - ``hf-hub:ORG/NAME``: a timm model of the Hugging Face hub, downloaded at first use;
        - ``bcos:NAME`` with `weights`: an official B-cos v2 file, NAME as in the ``bcos`` package;
        - a folder saved by ``ViTForImageClassification.save_pretrained``;
        - a ``.pt``, ``.pth`` or ``.safetensors`` file: a polysem checkpoint, or a state dict (bare,
          or under ``"state_dict"`` or ``"model"``) whose architecture is in the file or is `arch`.
    weights : path-like, optional
        The weights file, for ``timm:`` and ``bcos:``.
    arch : str, optional
        timm's name of the architecture, for a file that does not say.
    num_classes : int, optional
        Number of classes. Where weights are loaded it must be theirs.
    device : str or torch.device
        Where the model goes.

    Returns
    -------
    LoadedModel

    Raises
    ------
    SpecError
        If the spec, the architecture or the device is not known.
    MissingError
        If a file is not there, or a download fails.
    CheckpointError
        If the weights cannot be read safely, or do not fit; the first differences are named.
    NonFiniteError
        If the weights hold NaN or infinity.

    Examples
    --------
    >>> loaded = load_model("timm:resnet20_32", num_classes=7)
    >>> loaded.name, loaded.transform.size
    ('resnet20_32', (32, 32))
    """
    text = os.fspath(spec)
    place = choose_device(str(device))
    file = None if weights is None else _path(weights)
    form, _, name = text.partition(":")
    if num_classes is not None and num_classes < 0:
        raise SpecError(f"num_classes must not be negative, got {num_classes}")
    if arch is not None and form in ("timm", "hf-hub", "bcos"):
        raise SpecError(f"arch belongs to a weights file; {text!r} names its architecture itself")
    if file is not None and form not in ("timm", "bcos"):
        raise SpecError(f"weights belongs to timm:NAME and bcos:NAME; {text!r} has its own")
    if form == "timm":
        found = _from_timm(name, file, num_classes)
    elif form == "hf-hub":
        found = _downloaded(text)
    elif form == "bcos":
        found = _from_bcos(name, file)
    else:
        found = _from_path(text, arch, num_classes)
    held = getattr(found.model, "num_classes", None)
    if num_classes is not None and held != num_classes:
        raise CheckpointError(f"{text} has {held} classes, not the {num_classes} asked for")
    require_finite(found.model, source=text if file is None else str(file))
    digest = state_digest(found.model.state_dict())
    model = found.model.eval().to(place)
    return LoadedModel(
        model, found.transform, found.classes, found.name, text, digest, dict(found.info),
        found.build,
    )  # fmt: skip


def _path(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(path))  # Path.expanduser raises for a user that is not known


def _from_timm(name: str, file: Path | None, num_classes: int | None) -> _Found:
    name, _, query = name.partition("?")
    if query not in ("", "pretrained"):
        raise SpecError(f"after timm:{name} only '?pretrained' is understood, not '?{query}'")
    require_known(name)
    if query and file is not None:
        raise SpecError(f"timm:{name}?pretrained brings its own weights; leave weights= out")
    if query:
        return _downloaded(name)
    if file is not None:
        return _from_file(file, name, num_classes)
    build = partial(create, name, {} if num_classes is None else {"num_classes": num_classes})
    model = build()
    return _Found(model, evaluation_transform(model), timm.models.get_arch_name(name), build)


def _downloaded(name: str) -> _Found:
    if not name.startswith("hf-hub:") and not timm.models.is_model_pretrained(name):
        raise SpecError(f"timm has no pretrained weights for {name}; ask for timm:{name} without")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, the hub and their network layers raise many kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise MissingError(
            f"the weights of {name} could not be downloaded ({reason}); check name and network, or "
            "load a file: load_model('timm:NAME', weights=FILE)"
        ) from None
    labels = model.pretrained_cfg.get("label_names")
    known = labels is not None and len(labels) == model.num_classes
    arch = model.pretrained_cfg.get("architecture") or timm.models.get_arch_name(name)
    build = partial(create, arch, {"num_classes": model.num_classes})
    return _Found(model, evaluation_transform(model), arch, build, tuple(labels) if known else None)


def _from_bcos(name: str, file: Path | None) -> _Found:
    if file is None:
        raise SpecError(
            f"bcos:{name} needs its weights file: load_model('bcos:{name}', weights=FILE)"
        )
    tensors, _ = read_tensors(file)
    # the official training script puts the model beside its running average and other state
    inner = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    translate = official_resnet if "resnet" in name else official_vit
    try:
        arch, model_args, state_dict = translate(name, inner or tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return _filled(arch, model_args, state_dict, str(file))


def _from_path(text: str, arch: str | None, num_classes: int | None) -> _Found:
    path = _path(text)
    if text and path.is_dir():
        if arch is not None:
            raise SpecError(f"arch belongs to a weights file, and {path} is a folder")
        if not (path / "config.json").is_file():
            raise MissingError(f"{path} has no config.json: it is no Hugging Face ViT folder")
        from polysem.models.huggingface import load_vit_folder

        model, transform, classes, build = load_vit_folder(path)
        return _Found(model, transform, "vit_huggingface", build, classes)
    if not text or not (path.exists() or path.suffix in SUFFIXES):
        if os.sep in text:
            raise MissingError(f"there is no file or folder {path}")
        near = did_you_mean(f"timm:{text}", (f"timm:{name}" for name in timm.list_models()))
        raise SpecError(f"{text!r} is no model spec, which is {_FORMS}{near}")
    return _from_file(path, arch, num_classes)


def _from_file(path: Path, arch: str | None, num_classes: int | None) -> _Found:
    tensors, header = read_tensors(path)
    if is_ours(header):
        return _from_checkpoint(parse_checkpoint(tensors, header, source=str(path)), arch, path)
    said = header.get("arch")  # timm's training script writes it
    name = arch if arch is not None else said
    if not isinstance(name, str):
        raise SpecError(
            f"{path} does not say for which model its weights are; name timm's architecture: "
            "load_model(PATH, arch=NAME)"
        )
    require_known(name)
    held = classes_in(tensors, name)
    if num_classes is not None and held not in (None, num_classes):
        raise CheckpointError(f"{path} has {held} classes, not the {num_classes} asked for")
    classes = num_classes if held is None else held
    return _filled(name, {} if classes is None else {"num_classes": classes}, tensors, str(path))


def _from_checkpoint(checkpoint: Checkpoint, arch: str | None, path: Path) -> _Found:
    name, model_args = checkpoint.model_name, checkpoint.model_args
    if arch is not None and arch != name:
        raise CheckpointError(f"{path} holds a {name}, not the {arch} asked for")
    reserved = _RESERVED & model_args.keys()
    if reserved or not timm.is_model(name):
        what = f"sets {', '.join(sorted(reserved))}" if reserved else f"names the model {name!r}"
        near = "" if reserved else did_you_mean(name, timm.list_models())
        raise CheckpointError(f"{path} {what}, which this polysem cannot build{near}")
    try:
        found = _filled(name, model_args, checkpoint.state_dict, str(path))
    except SpecError as error:
        raise CheckpointError(f"{path}: {error}") from None
    held = getattr(found.model, "num_classes", None)
    if checkpoint.classes is not None and len(checkpoint.classes) != held:
        raise CheckpointError(f"{path} names {len(checkpoint.classes)} classes for {held} logits")
    info = {
        "recipe": checkpoint.recipe,
        "metrics": checkpoint.metrics,
        "step": checkpoint.step,
    }
    return _Found(found.model, checkpoint.transform, name, found.build, checkpoint.classes, info)


def _filled(
    arch: str, model_args: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
) -> _Found:
    _require_modest(model_args, tensors, source, arch)
    build = partial(create, arch, dict(model_args))
    _require_shapes(build, tensors, source=source, name=arch)
    with torch.random.fork_rng(devices=[]):  # the random weights are not kept
        model = build()
    fit(model, tensors, source=source, name=arch)
    return _Found(model, evaluation_transform(model), timm.models.get_arch_name(arch), build)


def _require_modest(
    model_args: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str, arch: str
) -> None:
    """Refuse arguments larger than the weights: a file must not say how much memory we take."""
    n_values = sum(value.numel() for value in tensors.values())
    most = {"depth": len(tensors)}  # no block without a tensor of its own
    for key, value in model_args.items():
        limit = most.get(key, max(n_values, _LARGEST_SIDE))
        if any(abs(number) > limit for number in _numbers(value)):
            raise CheckpointError(
                f"{source} says that its {arch} has {key} = {str(value)[:40]}, and holds "
                f"{len(tensors)} tensors of {n_values:,} values in all"
            )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)


def _require_shapes(
    build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], *, source: str, name: str
) -> None:
    """Hold the weights against a model without memory before there is one with."""
    try:
        with torch.device("meta"):
            model = build()
    except SpecError:
        return  # a wrong argument, or a model that computes while it is built: told by the real one
    require_fit(model, tensors, source=source, name=name)
