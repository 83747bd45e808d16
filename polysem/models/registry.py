"""What timm's registry can build, polysem's models among it; between `load` and timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from polysem.errors import SpecError, did_you_mean
from polysem.models.transform import Transform

__all__ = ["classes_in", "create", "evaluation_transform", "home", "require_known"]


def require_known(name: str) -> None:
    """Refuse a name, with or without the tag of pretrained weights, that timm does not know.

    Raises
    ------
    SpecError
        With near matches.
    """
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        near = did_you_mean(arch, timm.list_models())
        raise SpecError(f"timm has no model called {arch!r}{near}")
    tagged = timm.models.get_arch_pretrained_cfgs(arch)
    if tag and name not in tagged:
        known = [each for each in tagged if "." in each]
        near = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
        raise SpecError(f"{arch} has no pretrained weights tagged {tag!r}{near}")


def home(name: str) -> str:
    """Return the module that a known model is from, such as ``polysem.models.vit``."""
    module: str = timm.model_entrypoint(name.partition(".")[0]).__module__
    return module


def create(arch: str, model_args: Mapping[str, Any]) -> nn.Module:
    """Return ``timm.create_model(arch, **model_args)``, its weights random.

    Raises
    ------
    SpecError
        If the arguments are not for this architecture.
    """
    try:
        model: nn.Module = timm.create_model(arch, **model_args)
    except SpecError:
        raise
    except Exception as error:  # whatever the many constructors make of a wrong argument
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"{arch} cannot be built with {dict(model_args)}: {reason}") from None
    return model


def evaluation_transform(model: nn.Module) -> Transform:
    """Return timm's evaluation transform of a model; six channels are ``[x, 1 − x]``.

    Raises
    ------
    SpecError
        If the model takes neither 3 nor 6 channels.
    """
    config = timm.data.resolve_model_data_config(model)
    channels, *size = config["input_size"]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or size  # model.args
    channels = getattr(model, "in_chans", channels)  # not every architecture keeps both in step
    if channels not in (3, 6):
        raise SpecError(f"the model takes {channels} channels; polysem gives 3, or [x, 1 − x], 6")
    inverse = channels == 6
    return Transform(
        size=(size[0], size[1]),
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=(0.0,) * 3 if inverse else tuple(config["mean"]),
        std=(1.0,) * 3 if inverse else tuple(config["std"]),
        inverse=inverse,
    )


def classes_in(tensors: Mapping[str, Tensor], arch: str) -> int | None:
    """Read the number of classes off the classifier; None where timm does not name that."""
    classifier = getattr(timm.get_pretrained_cfg(arch), "classifier", None)
    if isinstance(classifier, (tuple, list)):
        classifier = classifier[0]
    weight = tensors.get(f"{classifier}.weight")
    return None if weight is None else weight.shape[0]
