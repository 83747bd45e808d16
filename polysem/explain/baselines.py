"""Explanations that need nothing of a network but gradients in its input: what others must beat."""

from __future__ import annotations

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.explain.forward import explaining, require_finite_map, target_values
from polysem.explain.target import TargetLike

__all__ = ["input_gradient", "integrated_gradients"]


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


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: TargetLike,
    *,
    baseline: Tensor | float = 0.0,
    steps: int = 32,
) -> Tensor:
    """Integrated gradients from a baseline to the image, by captum (arXiv 1703.01365).

    ``Σ_channels (x − x₀) ⊙ ∫ ∂y/∂x(x₀ + t (x − x₀)) dt``, whose sum is the number of the image
    less that of the baseline, up to the error of so many steps.

    Parameters
    ----------
    model : nn.Module
    images : Tensor
        The model's input [image, channel, y, x].
    target : Target or Tensor
        What is explained.
    baseline : Tensor or float, default 0.0
        x₀, broadcast to the images. Zeros are the mean colour of a standard network, and for
        ``[x, 1 − x]`` no colour at all, neither dark nor bright.
    steps : int, default 32
        Points of the Gauss–Legendre quadrature.

    Returns
    -------
    Tensor
        [image, y, x], in units of the target.

    Raises
    ------
    SpecError
        If target, baseline or images do not fit the model, or `steps` is below 1.
    NonFiniteError
        If the map is not finite.
    """
    if steps < 1:
        raise SpecError(f"integrated gradients take at least one step, not {steps}")
    images = images.detach()
    try:
        start = torch.as_tensor(baseline).to(images).expand_as(images)
    except RuntimeError:
        raise SpecError(
            f"a baseline of shape {tuple(torch.as_tensor(baseline).shape)} does not fit images "
            f"of {tuple(images.shape)}"
        ) from None
    classes = target if isinstance(target, Tensor) else None

    def value(points: Tensor, wanted: Tensor | None) -> Tensor:
        chosen = target if wanted is None else wanted
        return target_values(model, points, [chosen])[0]

    with explaining(model):
        attributed = IntegratedGradients(value).attribute(
            images,
            baselines=start,
            additional_forward_args=(classes,),
            n_steps=steps,
            internal_batch_size=max(len(images), 16),
        )
    return require_finite_map(attributed.detach().sum(1), "integrated_gradients")
