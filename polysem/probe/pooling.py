"""From the activation at a site to one number per image and unit, and a map of each unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polysem.errors import SpecError
from polysem.sites import Site

__all__ = ["Pooled", "pool_activation", "pool_names", "tail_names"]


@dataclass(frozen=True)
class Pooled:
    """What one batch shows at one site.

    Attributes
    ----------
    values : Tensor
        float32 [pool, image, unit], pools in the order of `pool_names`.
    maps : Tensor or None
        A view of the activation as [image, unit, position]; None where there are no tokens.
    grid : tuple of int or None
        Rows and columns of the map.
    """

    values: Tensor
    maps: Tensor | None
    grid: tuple[int, int] | None


def pool_names(site: Site, *, signed: bool, has_class_token: bool) -> tuple[str, ...]:
    """Return how tokens become one number at this site.

    max and mean over patches; min too where units fire in both directions; the class token's own
    value apart; value where there are no tokens at all.
    """
    if "token" not in site.dims and "channel" not in site.dims:
        return ("value",)
    names = ("max", "mean", "min") if signed and "head" not in site.dims else ("max", "mean")
    return (*names, "cls") if has_class_token and "token" in site.dims else names


def tail_names(site: Site, *, signed: bool) -> tuple[str, ...]:
    """Return the tails whose exemplars are kept: both where units fire in both directions."""
    return ("upper", "lower") if signed and "head" not in site.dims else ("upper",)


def pool_activation(
    site: Site, activation: Tensor, pools: tuple[str, ...], *, n_prefix_tokens: int
) -> Pooled:
    """Pool the activation of one batch.

    The unit of a site with heads is the whole head, and its activation is the length of its
    vector. Class and register tokens stay out of the pools over patches.

    Parameters
    ----------
    site : Site
        What the axes of `activation` are.
    activation : Tensor
        As the site's dims say.
    pools : tuple of str
        From `pool_names`.
    n_prefix_tokens : int
        Tokens before the patches.

    Raises
    ------
    SpecError
        If the activation does not have the axes that the site's name promises.
    """
    if activation.ndim != len(site.dims):
        raise SpecError(
            f"{site.name} gives a tensor of shape {tuple(activation.shape)}, not "
            f"[{', '.join(site.dims)}]; leave the site out with --sites"
        )
    if pools == ("value",):
        return Pooled(activation.float()[None], None, None)
    grid = None
    if "head" in site.dims:
        activation = torch.linalg.vector_norm(activation, dim=-1)
    if "channel" in site.dims:
        grid = (activation.shape[2], activation.shape[3])
        patches = activation.flatten(2).transpose(1, 2)
    else:
        patches = activation[:, n_prefix_tokens:]
    # narrow types add up in float32; for float32 an explicit dtype would cost a copy
    wide = None if patches.dtype == torch.float32 else torch.float32
    pooled: dict[str, Callable[[], Tensor]] = {
        "max": lambda: patches.amax(1),
        "mean": lambda: patches.mean(1, dtype=wide),
        "min": lambda: patches.amin(1),
        "cls": lambda: activation[:, 0],
    }
    values = torch.stack([pooled[name]().float() for name in pools])
    return Pooled(values, patches.transpose(1, 2), grid)


def square_grid(n_positions: int) -> tuple[int, int]:
    """Return the grid of so many patches: square if it can be, else one row."""
    side = math.isqrt(n_positions)
    return (side, side) if side * side == n_positions else (1, n_positions)
