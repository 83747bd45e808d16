"""How widely and how far each head looks: entropy and mean distance of its attention pattern."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["patch_distances", "pattern_statistics"]

#: Patterns of so many bytes at a time stay in a CPU's cache between the passes over them.
_CHUNK_BYTES = 2 << 20


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


def pattern_statistics(scores: Tensor, distances: Tensor, n_prefix_tokens: int) -> Tensor:
    """Return entropy and mean attention distance of each head on each image.

    Entropy is the mean over all queries of ``-sum p ln p``, in nats. Distance is the mean over
    patch queries of the expected distance to the attended patch, in patch widths; attention to
    prefix tokens is left out and the rest renormalised (Dosovitskiy et al. 2010.11929, fig. 7).

    Parameters
    ----------
    scores : Tensor
        Attention logits [image, head, query, key]; not changed.
    distances : Tensor
        From `patch_distances`.
    n_prefix_tokens : int
        Tokens before the patches.

    Returns
    -------
    Tensor
        float32 [statistic, image, head]: entropy, distance.
    """
    row_bytes = 4 * scores[0].numel()
    chunks = scores.split(max(1, _CHUNK_BYTES // row_bytes))
    return torch.cat([_statistics(chunk, distances, n_prefix_tokens) for chunk in chunks], dim=1)


def _statistics(scores: Tensor, distances: Tensor, n_prefix_tokens: int) -> Tensor:
    shifted = scores.float() - scores.float().amax(-1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(-1)
    # -sum p ln p = ln(total) - sum(weights * shifted) / total; a masked key has weight 0
    weighted = torch.linalg.vecdot(weights, shifted.clamp_min(torch.finfo(torch.float32).min))
    entropy = (total.log() - weighted / total).mean(-1)
    patches = weights[..., n_prefix_tokens:, :]
    reach = (patches * distances[n_prefix_tokens:]).sum(-1)
    # a query that sees class tokens only has no distance
    distance = (reach / patches[..., n_prefix_tokens:].sum(-1)).nanmean(-1)
    return torch.stack([entropy, distance])
