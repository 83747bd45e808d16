"""Explanations that need nothing of a network but gradients in its input: what others must beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polysem.explain.forward import explaining, require_finite_map, target_values
from polysem.explain.target import TargetLike

__all__ = ["input_gradient"]


def input_gradient(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Input times gradient, ``Σ_channels x ⊙ ∂y/∂x``, with nothing held fixed.

    For piecewise-linear networks this is what W(x) contributes; for B-cos networks it is not
    (:func:`~polysem.explain.linear.bcos` is). Shrikumar et al., arXiv 1605.01713.

    Parameters
    ----------
    model : nn.Module
    images : Tensor
        The model's input [image, channel, y, x].
    target : Target or Tensor
        What is explained.

    Returns
    -------
    Tensor
        [image, y, x], in units of the target.

    Raises
    ------
    SpecError
        If target or images do not fit the model.
    NonFiniteError
        If the map is not finite.
    """
    with explaining(model):
        x = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            target_values(model, x, [target]).sum(), x, materialize_grads=True
        )
    return require_finite_map((images.detach() * gradient).sum(1), "input_gradient")
