"""How much units of a layer share directions in their weights: needs the model, not the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from polysem.sites import Site

__all__ = ["mean_absolute_cosine", "weight_cosine"]


def mean_absolute_cosine(rows: Tensor) -> Tensor:
    """Return the mean absolute cosine of each row [unit, d_in] with every other row [unit].

    In [0, 1]. About ``sqrt(2 / (π d_in))`` for random directions, 0 only if no more units than
    dimensions share the space at right angles; NaN for a unit alone or of zero weights.
    """
    wide = rows.double()
    length = wide.norm(dim=1, keepdim=True)
    directions = wide / torch.where(length > 0, length, torch.nan)
    living = directions.nan_to_num(0)
    others = int((length > 0).sum()) - 1
    total = torch.cat([(some @ living.T).abs().sum(1) for some in directions.split(1024)])
    return (total - 1) / others if others > 0 else torch.full_like(total, torch.nan)


def weight_cosine(model: nn.Module, site: Site) -> tuple[Tensor, float] | None:
    """Return the overlap of the incoming weights of a site's units, and that of random ones.

    None where units have no weights of their own:
    MLP neurons alone have one row each; where several rows compete for a unit (MaxOut), there is
    no single direction.
    """
    if site.part != "mlp.hook_post":
        return None
    layer: Any = getattr(model.get_submodule(f"blocks.{site.layer}.mlp"), "fc1", None)
    weight = getattr(layer, "weight", None)
    if weight is None or getattr(layer, "max_out", 1) != 1:
        return None
    chance = math.sqrt(2 / (math.pi * weight.shape[1]))
    return mean_absolute_cosine(weight.detach()), chance
