"""The dynamic-linear summary: a network's whole computation for one image as one matrix W(x).

A B-cos network is a product of matrices that depend on the input, and so is a network of
piecewise-linear layers: ReLU, LeakyReLU, MaxOut and max-pooling multiply by a binary diagonal
matrix, the activation pattern, once the input is given. With everything that makes up W(x) held
fixed, its rows are gradients, and rows of many targets are batched vector-Jacobian products of
one forward pass. Böhle et al., arXiv 2205.10268 and 2306.10898.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from polysem.errors import SpecError
from polysem.explain.forward import explaining, require_finite_map, target_values
from polysem.explain.target import TargetLike
from polysem.models.bcos import BcosConv2d, BcosLinear, explanation_mode

__all__ = ["LinearMap", "bcos", "frozen", "linear_map", "require_bcos", "rows"]


@dataclass(frozen=True)
class LinearMap:
    """Rows of W(x) for some targets, with what they multiply.

    Attributes
    ----------
    weights : Tensor
        W(x): [target, image, …], the axes of `source` after the targets.
    source : Tensor
        What W(x) is applied to, images or the activation of a site: [image, …].
    values : Tensor
        The targets' own numbers [target, image].
    """

    weights: Tensor
    source: Tensor
    values: Tensor

    @property
    def contributions(self) -> Tensor:
        """``source ⊙ W(x)`` [target, image, …], of which the sum is what W(x) explains."""
        return self.source * self.weights


def bcos(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Contribution of every pixel in a B-cos network: ``Σ_channels x ⊙ W(x)``.

    The sum of the map is the target's number, less the additive terms that
    :func:`~polysem.explain.completeness.check` names.

    Parameters
    ----------
    model : nn.Module
        Of B-cos layers.
    images : Tensor
        ``[x, 1 − x]``: [image, channel, y, x].
    target : Target or Tensor
        What is explained.

    Returns
    -------
    Tensor
        [image, y, x], in units of the target; positive is evidence for it.

    Raises
    ------
    SpecError
        If the model has no B-cos layers, or target or images do not fit it.
    NonFiniteError
        If the map is not finite.
    """
    require_bcos(model)
    found = linear_map(model, images, [target])
    return require_finite_map(found.contributions[0].sum(1), "bcos")


def require_bcos(model: nn.Module) -> None:
    """Refuse a model without B-cos layers.

    Raises
    ------
    SpecError
        Naming what else there is.
    """
    if not any(isinstance(module, (BcosLinear, BcosConv2d)) for module in model.modules()):
        raise SpecError(
            f"{type(model).__name__} has no B-cos layers, so no W(x) in this sense; "
            "input_gradient is the same for piecewise-linear networks"
        )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Prepare a model so that gradients are rows of W(x); attention in parts, for vmap."""
    with explaining(model), explanation_mode(model), sdpa_kernel(SDPBackend.MATH):
        yield


def linear_map(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[TargetLike],
) -> LinearMap:
    """Return the rows of W(x) that belong to some targets, from one forward pass."""
    with frozen(model):
        x = images.detach().clone().requires_grad_()
        values = target_values(model, x, targets)
        return LinearMap(rows(values, x), x.detach(), values.detach())


def rows(values: Tensor, source: Tensor) -> Tensor:
    """Return the gradient of each of values [target, image] in source [image, …]."""
    return torch.stack(
        [
            torch.autograd.grad(value.sum(), source, retain_graph=True, materialize_grads=True)[0]
            for value in values
        ]
    )
