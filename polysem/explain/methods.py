"""The methods of explanation by name, and which of them a model can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from polysem.errors import SpecError, did_you_mean
from polysem.explain.baselines import input_gradient, integrated_gradients
from polysem.explain.cam import (
    eigencam,
    eigengradcam,
    gradcam,
    gradcam_elementwise,
    gradcam_plusplus,
    hirescam,
    layercam,
    xgradcam,
)
from polysem.explain.cam_layer import require_maps
from polysem.explain.linear import bcos, require_bcos
from polysem.explain.rollout import gradient_rollout, raw_attention, require_attention, rollout
from polysem.explain.target import TargetLike

__all__ = ["METHODS", "Method", "applicable_methods", "choose_methods"]


class Method(Protocol):
    """A function of model, images and target that returns maps [image, y, x]."""

    __name__: str

    def __call__(self, model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
        """Return a signed map of each image at input resolution."""


def _any_model(model: nn.Module, target: TargetLike | None) -> None:
    """Every model has gradients."""


def _bcos_model(model: nn.Module, target: TargetLike | None) -> None:
    require_bcos(model)


#: What each method asks of a model, and of a target if there is one: a function that raises
#: SpecError where it cannot be had.
_NEEDS: dict[Method, Callable[[nn.Module, TargetLike | None], None]] = {
    bcos: _bcos_model,
    gradcam: require_maps,
    hirescam: require_maps,
    gradcam_plusplus: require_maps,
    gradcam_elementwise: require_maps,
    xgradcam: require_maps,
    layercam: require_maps,
    eigencam: require_maps,
    eigengradcam: require_maps,
    rollout: require_attention,
    gradient_rollout: require_attention,
    raw_attention: require_attention,
    input_gradient: _any_model,
    integrated_gradients: _any_model,
}

#: Every method by its function's name.
METHODS: dict[str, Method] = {method.__name__: method for method in _NEEDS}


def applicable_methods(model: nn.Module, target: TargetLike | None = None) -> dict[str, Method]:
    """Return the methods that a model, and a target if one is given, can have, by name."""
    return {n: method for n, method in METHODS.items() if _lacks(method, model, target) is None}


def choose_methods(
    names: str, model: nn.Module, target: TargetLike | None = None
) -> dict[str, Method]:
    """Return the methods named, separated by commas; ``all`` are those that there can be.

    Raises
    ------
    SpecError
        If there is no such method, or the model or the target cannot have it.
    """
    chosen: dict[str, Method] = {}
    for name in (each.strip() for each in names.split(",")):
        if name == "all":
            chosen |= applicable_methods(model, target)
            continue
        if name not in METHODS:
            near = did_you_mean(name, METHODS) or f"; there are {', '.join(METHODS)}"
            raise SpecError(f"no method is called {name!r}{near}")
        reason = _lacks(METHODS[name], model, target)
        if reason is not None:
            raise reason
        chosen[name] = METHODS[name]
    return chosen


def _lacks(method: Method, model: nn.Module, target: TargetLike | None) -> SpecError | None:
    try:
        _NEEDS[method](model, target)
    except SpecError as error:
        return error
    return None
