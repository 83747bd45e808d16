"""Where heads look and what they have in common: profiles of patterns, and redundancy.

All of it comes from one pass over a batch that is shown patterns and head outputs layer by layer;
patterns are kept only where two heads are compared, at a few queries. Where attention is not a
softmax its negative weights count as none, and the others are scaled to sum to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from polysem.models.taps import Point, tapped
from polysem.probe.gates import GatedViT
from polysem.probe.patterns import patch_distances, pattern_statistics

__all__ = ["PROFILE", "Looks", "Moments", "look", "patch_grid", "same_pixels"]

#: What `Looks.profile` holds, in order.
PROFILE = (
    "pattern_entropy", "pattern_distance", "class_share", "self_share", "neighbour_share",
    "previous_share", "duplicate_share",
)  # fmt: skip

#: Queries of each image at which the patterns of two heads are compared.
_QUERIES = 32


@dataclass(frozen=True)
class Looks:
    """Where the heads of a model look on one batch.

    Attributes
    ----------
    profile : Tensor
        [measure, image, head], measures as in `PROFILE`.
    maps : Tensor
        Attention to each patch [image, head, patch]: of the class token, or where there is none
        the mean of all patches.
    divergence : Tensor
        Jensen–Shannon divergence between the patterns of two heads, bits from 0 (the same) to 1
        (nothing in common), mean over some queries [image, head, head].
    moments : Moments
        Of the heads' outputs over all tokens.
    pattern_sum : Tensor
        Sum over images of the patterns [head, query, key].
    """

    profile: Tensor
    maps: Tensor
    divergence: Tensor
    moments: Moments
    pattern_sum: Tensor


@dataclass(frozen=True)
class Moments:
    """Sums of first and second powers of the outputs of all heads, float64; they add up.

    Attributes
    ----------
    count : int
        Tokens.
    first, second : Tensor
        [d] and [d, d], d the dimensions of all heads side by side.
    """

    count: int
    first: Tensor
    second: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.first + other.first, self.second + other.second
        )

    def cka(self, n_heads: int) -> Tensor:
        """Return the linear CKA of each pair of heads [head, head], 0 to 1; NaN for silent ones.

        ``‖C_ij‖² / (‖C_ii‖ ‖C_jj‖)`` of the cross-covariances over tokens (Kornblith et al.
        1905.00414): 1 if one output is a rotation of the other.
        """
        covariance = self.second - torch.outer(self.first, self.first) / self.count
        blocks = rearrange(covariance, "(i a) (j b) -> i j a b", i=n_heads, j=n_heads)
        shared = blocks.square().sum((-1, -2))
        own = shared.diagonal().sqrt()
        return shared / torch.outer(own, own)


def look(vit: GatedViT, images: Tensor, pixels: Tensor, *, seed: int = 0) -> Looks:
    """Measure patterns and outputs of all heads on one batch, inside `gates.frozen`.

    Parameters
    ----------
    vit : GatedViT
    images : Tensor
        What the model takes [image, channel, y, x].
    pixels : Tensor
        The same images as uint8, in which equal patches are looked for.
    seed : int, default 0
        Which queries two heads are compared at.
    """
    seen: dict[str, list[Tensor]] = {"z": [], "profile": [], "maps": [], "some": [], "sum": []}
    n_prefix = vit.hooked.n_prefix_tokens
    state: dict[str, Tensor] = {}

    def show_pattern(given: Tensor) -> Tensor:
        n_tokens, pattern = given.shape[-1], _distribution(given)
        if not state:
            state.update(_places(vit, pixels, n_tokens, given.device, seed))
        statistics = pattern_statistics([pattern.log()], state["distances"], n_prefix)
        seen["profile"].append(
            torch.cat([statistics, _shares(pattern, state, n_prefix, vit.hooked.has_class_token)])
        )
        patches = pattern[..., n_prefix:]
        own = patches[:, :, 0] if vit.hooked.has_class_token else patches[:, :, n_prefix:].mean(2)
        seen["maps"].append(own)
        seen["some"].append(pattern[:, :, state["queries"]])
        seen["sum"].append(pattern.sum(0))
        return given

    def show_z(z: Tensor) -> Tensor:
        seen["z"].append(z.flatten(0, 1).flatten(1))
        return z

    points: dict[str, Point] = {}
    for layer in vit.layers:
        points[f"blocks.{layer}.attn.hook_pattern"] = show_pattern
        points[f"blocks.{layer}.attn.hook_z"] = show_z
    with torch.no_grad(), tapped(vit.taps, points):
        vit.finish(vit.embed(images))
    outputs = torch.cat(seen["z"], dim=1).double()
    return Looks(
        profile=torch.cat(seen["profile"], dim=2),
        maps=torch.cat(seen["maps"], dim=1),
        divergence=_divergence(torch.cat(seen["some"], dim=1)),
        moments=Moments(len(outputs), outputs.sum(0), outputs.T @ outputs),
        pattern_sum=torch.cat(seen["sum"]).double(),
    )


def _places(
    vit: GatedViT, pixels: Tensor, n_tokens: int, device: torch.device, seed: int
) -> dict[str, Tensor]:
    """Return which patches are neighbours, before, or the same as which, on the grid of a batch."""
    prefix = vit.hooked.n_prefix_tokens
    grid = patch_grid(n_tokens - prefix, *pixels.shape[-2:])
    distances = patch_distances(grid, prefix, device=device)
    inner = distances[prefix:, prefix:]
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randperm(n_tokens, generator=generator)[:_QUERIES].sort().values
    return {
        "distances": distances,
        "neighbours": ((inner > 0) & (inner < 1.5)).float(),
        "same": same_pixels(pixels, grid).to(device),
        "queries": queries.to(device),
    }


def patch_grid(n_patches: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of patches, in the proportions of an image.

    >>> patch_grid(24, 32, 48)
    (4, 6)
    """
    rows = max(1, round(math.sqrt(n_patches * height / width)))
    while n_patches % rows:
        rows -= 1
    return rows, n_patches // rows


def same_pixels(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which other patches of an image hold the same pixels [image, patch, patch], bool.

    None do where the image does not divide into the grid.
    """
    rows, columns = grid
    n_patches, (height, width) = rows * columns, pixels.shape[-2:]
    if height % rows or width % columns:
        return torch.zeros(len(pixels), n_patches, n_patches, dtype=torch.bool)
    patches = rearrange(pixels, "i c (y h) (x w) -> i (y x) (c h w)", y=rows, x=columns)
    found = []
    for one in patches:
        kind = torch.unique(one, dim=0, return_inverse=True)[1]
        found.append(kind[:, None] == kind)
    same = torch.stack(found)
    same.diagonal(dim1=1, dim2=2).fill_(False)
    return same


def _shares(
    pattern: Tensor, state: dict[str, Tensor], n_prefix: int, has_class_token: bool
) -> Tensor:
    """Return the attention of patches to certain keys [measure, image, head]."""
    patches = pattern[:, :, n_prefix:]
    inner = patches[..., n_prefix:]
    n = inner.shape[-1]
    nothing = torch.full_like(inner[..., 0, 0], math.nan)
    to_class = patches[..., 0].mean(-1) if has_class_token else nothing
    own = inner.diagonal(dim1=-2, dim2=-1).mean(-1)
    near = (inner * state["neighbours"]).sum(-1).mean(-1)
    before = inner.diagonal(offset=-1, dim1=-2, dim2=-1)
    previous = before.mean(-1) if n > 1 else nothing
    same = state["same"].to(inner.dtype)[:, None]
    twins = same.any(-1)  # queries that have a double; an image without has no share
    duplicate = (inner * same).sum(-1).mul(twins).sum(-1) / twins.sum(-1)
    return torch.stack([to_class, own, near, previous, duplicate])


def _distribution(pattern: Tensor) -> Tensor:
    """Return weights that are at least 0 and sum to 1 over keys; a softmax's are as they were."""
    weights = pattern.clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def _divergence(patterns: Tensor) -> Tensor:
    """Return Jensen–Shannon divergences [image, head, head], bits, of patterns [image, head, …]."""
    n_heads = patterns.shape[1]
    entropy = _entropy(patterns)
    found = patterns.new_zeros(len(patterns), n_heads, n_heads)
    for i in range(n_heads - 1):
        mixed = _entropy((patterns[:, i, None] + patterns[:, i + 1 :]) / 2)
        both = (mixed - (entropy[:, i, None] + entropy[:, i + 1 :]) / 2).mean(-1).clamp(min=0)
        found[:, i, i + 1 :] = found[:, i + 1 :, i] = both
    return found / math.log(2)


def _entropy(pattern: Tensor) -> Tensor:
    entropy: Tensor = -torch.special.xlogy(pattern, pattern).sum(-1)
    return entropy
