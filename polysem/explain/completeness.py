"""Does W(x) explain everything? What it contributes, what is added along the way, and the rest.

``value = Σ x ⊙ W(x) + Σ terms``, where the terms are the constants that layers add, each times
its own dynamic weight: biases, the running means that batch norm subtracts, added positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from polysem.explain.forward import target_values
from polysem.explain.linear import require_linear, summarising
from polysem.explain.target import Target, TargetLike
from polysem.models.bcos import LogitBias

__all__ = ["Completeness", "check"]


#: Layers whose outputs have places after the channels.
_CHANNELS_BEFORE_PLACES = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True)
class Completeness:
    """How W(x) and the added terms make up the numbers that are explained.

    Attributes
    ----------
    values : Tensor
        The numbers, float64 [target, image].
    explained : Tensor
        ``Σ x ⊙ W(x)``, float64 [target, image].
    size : Tensor
        ``Σ|x ⊙ W(x)|``, float64 [target, image].
    terms : dict of str to Tensor
        What each layer that adds something contributes, [target, image], by the layer's name;
        ``positions`` are added positions and class tokens, ``around`` is what reaches the target
        on paths around the source site.
    """

    values: Tensor
    explained: Tensor
    size: Tensor
    terms: dict[str, Tensor]

    @property
    def error(self) -> Tensor:
        """``Σ x ⊙ W(x) + Σ terms − value`` [target, image]; 0 where nothing is missing."""
        return self.explained + sum(self.terms.values()) - self.values

    @property
    def relative_error(self) -> Tensor:
        """``|error|`` over the sizes of all that is summed, ``Σ|x ⊙ W(x)| + Σ|terms|``.

        In [0, 1], 0 is best; [target, image]. A value that large contributions cancel to has no
        more exact digits than their sum.
        """
        size = self.size + sum(term.abs() for term in self.terms.values())
        return self.error.abs() / size.clamp_min(torch.finfo(size.dtype).tiny)

    def table(self) -> pd.DataFrame:
        """Return one row a target and image: value, explained, each term, error."""
        columns = {"value": self.values, "explained": self.explained, **self.terms}
        columns["error"] = self.error
        target, image = torch.meshgrid(*(torch.arange(n) for n in self.values.shape), indexing="ij")
        keys = {"target": target.flatten().numpy(), "image": image.flatten().numpy()}
        return pd.DataFrame(
            keys | {name: column.flatten().cpu().numpy() for name, column in columns.items()}
        )


def check(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[TargetLike],
    *,
    source: str | None = None,
) -> Completeness:
    """Account for the whole of each target's number.

    Parameters
    ----------
    model : nn.Module
        B-cos, or piecewise linear.
    images : Tensor
        The model's input [image, channel, y, x].
    targets : sequence of Target or Tensor
        What is explained.
    source : str, optional
        The site that W(x) is applied to, instead of the images.

    Returns
    -------
    Completeness

    Raises
    ------
    SpecError
        If the model is neither of the two, or target, site or images do not fit it.
    NonFiniteError
        If a target's number is not finite.

    Examples
    --------
    >>> from polysem.explain.target import Target
    >>> from polysem.models.load import load_model
    >>> model = load_model("timm:resnet20_32").model.double()
    >>> found = check(model, torch.rand(2, 3, 32, 32, dtype=torch.float64), [Target(7)])
    >>> bool(found.error.abs().max() < 1e-12), "fc" in found.terms
    (True, True)
    """
    require_linear(model)
    starts: dict[str, Tensor] = {}

    def cut(activation: Tensor) -> Tensor:
        starts["source"] = activation.detach().clone().requires_grad_()
        return starts["source"]

    edits = {}
    if source is not None:
        Target(0, source)  # refuses attention weights, which are part of W(x)
        edits = {source: cut}
    with summarising(model), _recorded_constants(model) as constants:
        x = images.detach().clone().requires_grad_()
        values = target_values(model, x, targets, edits=edits)
        places = {name: place for name, (place, _) in constants.items() if place.requires_grad}
        places = {"source": starts.get("source", x), **places}
        if source is not None:
            places["around"] = x
        parts: dict[str, list[Tensor]] = {name: [] for name in places}
        sizes: list[Tensor] = []
        for value in values:
            gradients = _gradients(value, list(places.values()))
            for (name, place), gradient in zip(places.items(), gradients, strict=True):
                added = constants[name][1] if name in constants else place.detach()
                shares = (gradient * added).flatten(1)
                parts[name].append(shares.sum(1, dtype=torch.float64))
                if name == "source":
                    sizes.append(shares.abs().sum(1, dtype=torch.float64))
    stacked = {name: torch.stack(part) for name, part in parts.items()}
    explained = stacked.pop("source")
    return Completeness(values.detach().double(), explained, torch.stack(sizes), stacked)


def _gradients(value: Tensor, places: list[Tensor]) -> Sequence[Tensor]:
    if value.grad_fn is None:
        return [torch.zeros_like(place) for place in places]
    return torch.autograd.grad(value.sum(), places, retain_graph=True, materialize_grads=True)


@contextmanager
def _recorded_constants(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Record where each layer that adds a constant adds it, and the constant.

    Yields a dict that fills as the model runs: by layer, a tensor of the graph [image, …] and
    what was added to it, of a shape that broadcasts.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles: list[RemovableHandle] = []
    try:
        for name, module in model.named_modules():
            constant = _constant(module)
            if constant is not None:
                hook = partial(_record, found, name, constant)
                handles.append(module.register_forward_hook(hook))
        handles += _watch_positions(model, found)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _record(
    found: dict[str, tuple[Tensor, Tensor]],
    name: str,
    constant: Tensor,
    module: nn.Module,
    _inputs: Any,
    output: Tensor,
) -> Tensor:
    found[name] = (output, constant)
    return output.clone()  # what follows may work in place


def _constant(module: nn.Module) -> Tensor | None:
    """Return what a layer adds to its output, of a shape that broadcasts; None if nothing."""
    if isinstance(module, LogitBias):
        return torch.tensor(module.value, dtype=torch.float64)
    bias = getattr(module, "bias", None)
    bias = bias.detach() if isinstance(bias, Tensor) else None
    if isinstance(module, _BatchNorm):
        assert module.running_mean is not None and module.running_var is not None
        if type(module).__name__ == "BatchNormUncentered2d":
            return None
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.detach()
        shift = -module.running_mean * scale
        bias = shift if bias is None else bias + shift
    if bias is None:
        return None
    return bias[:, None, None] if isinstance(module, _CHANNELS_BEFORE_PLACES) else bias


def _watch_positions(
    model: nn.Module, found: dict[str, tuple[Tensor, Tensor]]
) -> list[RemovableHandle]:
    """Record what a transformer adds between its patches and its blocks, in no layer's name."""
    embed, before = getattr(model, "patch_embed", None), getattr(model, "norm_pre", None)
    if embed is None or before is None:
        return []
    patches: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        tokens = output.flatten(1, 2) if output.ndim == 4 else output
        patches[:] = [tokens.detach()]

    def compare(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        place = inputs[0]
        added = place.detach().clone()
        added[:, added.shape[1] - patches[0].shape[1] :] -= patches[0]
        if bool(added.any()):
            found["positions"] = (place, added)
        return (place.clone(),)

    return [embed.register_forward_hook(keep), before.register_forward_pre_hook(compare)]
