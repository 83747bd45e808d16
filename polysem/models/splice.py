"""Write neurons of our own into a vision transformer, which goes on computing what it computed.

The neurons are added to a block's MLP: each reads the residual stream along a direction that is
given, and nothing reads it. So a neuron with known truth can be probed, scored and labelled like
any other of the network.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.taps import BOUNDED_BELOW

__all__ = ["fit_readouts", "splice_units"]


def splice_units(model: nn.Module, layer: int, rows: Tensor, bias: Tensor) -> nn.Module:
    """Return a copy of a ViT with neurons added to the MLP of one block.

    The neurons come after the block's own. What they read is the block's normalised stream
    (``ln2.hook_normalized``); what they write is zero, so that the output stays as it was.

    Parameters
    ----------
    model : nn.Module
        A timm `VisionTransformer` of plain linear layers; left as it is.
    layer : int
        Index of the block.
    rows : Tensor
        Directions that the neurons read [unit, d_model].
    bias : Tensor
        Added before the activation function [unit].

    Raises
    ------
    SpecError
        If there is no such block, its MLP is not two linear layers with a plain activation
        function between them, or rows and bias do not fit it.
    """
    spliced = copy.deepcopy(model)
    blocks = getattr(spliced, "blocks", ())
    if not 0 <= layer < len(blocks):
        raise SpecError(f"the model has {len(blocks)} blocks; there is no block {layer}")
    mlp: Any = blocks[layer].mlp
    first: Any = getattr(mlp, "fc1", None)
    second: Any = getattr(mlp, "fc2", None)
    plain = type(first) is nn.Linear and type(second) is nn.Linear and first.bias is not None
    plain = plain and first.out_features == second.in_features  # gated ones multiply halves
    if not plain or type(mlp.act).__name__ not in BOUNDED_BELOW:
        raise SpecError(
            f"the MLP of block {layer} is not linear, activation, linear: neurons can be written "
            "into standard vision transformers, not into B-cos or gated ones"
        )
    if rows.shape[1:] != (first.in_features,) or bias.shape != rows.shape[:1]:
        raise SpecError(
            f"rows {tuple(rows.shape)} and bias {tuple(bias.shape)} do not fit block {layer}: "
            f"it needs [unit, {first.in_features}] and [unit]"
        )
    with torch.no_grad():
        mlp.fc1 = _linear(
            torch.cat([first.weight, rows.to(first.weight)]),
            torch.cat([first.bias, bias.to(first.bias)]),
        )
        idle = second.weight.new_zeros(second.out_features, len(rows))
        mlp.fc2 = _linear(torch.cat([second.weight, idle], dim=1), second.bias)
    return spliced


def fit_readouts(features: Tensor, targets: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """Return the directions [target, d_model] whose read-out follows each target best.

    Ridge regression of centred targets on centred features, in float64.

    Parameters
    ----------
    features : Tensor
        [image, d_model].
    targets : Tensor
        [image, target].
    ridge : float
        Penalty, as a share of the mean variance of the features.
    """
    wide = features.double() - features.double().mean(0)
    aims = targets.double() - targets.double().mean(0)
    covariance = wide.T @ wide / len(wide)
    penalty = ridge * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
    solved: Tensor = torch.linalg.solve(covariance + penalty, wide.T @ aims / len(wide))
    return solved.T


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made
