"""How widely and how far each head looks: entropy and mean distance of its attention pattern."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["images_at_a_time", "patch_distances", "pattern_statistics"]

_CHUNK_BYTES = 2 << 20
_FAR = 1e30


def patch_distances(
    grid: tuple[int, int], n_prefix_tokens: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the distance between patch centres in patch widths [token, token], float32.

    Rows and columns of class and register tokens are zero.
    """
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    distances = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.nn.functional.pad(distances, (n_prefix_tokens, 0, n_prefix_tokens, 0)).to(device)


def pattern_statistics(scores: Iterable[Tensor], distances: Tensor, n_prefix_tokens: int) -> Tensor:
    """Return entropy and mean attention distance of each head on each image.

    Entropy is the mean over all queries of ``-sum p ln p``, in nats. Distance is the mean over
    patch queries of the expected distance to the attended patch, in patch widths; attention to
    prefix tokens is left out and the rest renormalised (Dosovitskiy et al. 2010.11929, fig. 7).

    Parameters
    ----------
    scores : iterable of Tensor
        Attention logits [image, head, query, key], a few images at a time (`images_at_a_time`);
        of patterns that are no softmax, what `pattern_logits` makes of them.
    distances : Tensor
        From `patch_distances`.
    n_prefix_tokens : int
        Tokens before the patches.

    Returns
    -------
    Tensor
        float32 [statistic, image, head]: entropy, distance.
    """
    return torch.cat([_statistics(some, distances, n_prefix_tokens) for some in scores], dim=1)


def images_at_a_time(n_heads: int, n_tokens: int) -> int:
    """Return how many images' patterns stay in a CPU's cache between the passes over them."""
    return max(1, _CHUNK_BYTES // (4 * n_heads * n_tokens * n_tokens))


def _statistics(scores: Tensor, distances: Tensor, n_prefix_tokens: int) -> Tensor:
    scores = scores.float()
    pattern = scores.softmax(-1)
    # ln sum exp s = s - ln p at the largest; -sum p ln p = ln sum exp s - sum p s
    log_total = scores.amax(-1) - pattern.amax(-1).log()
    finite = scores.clamp(min=-_FAR)  # where a mask makes p 0, p s is 0 too
    entropy = (log_total - finite.mul_(pattern).sum(-1)).mean(-1)
    patches = pattern[..., n_prefix_tokens:, :]
    reach = (patches * distances[n_prefix_tokens:]).sum(-1)
    # a query that sees class tokens only has no distance
    distance = (reach / patches[..., n_prefix_tokens:].sum(-1)).nanmean(-1)
    return torch.stack([entropy, distance])
