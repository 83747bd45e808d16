"""How much work a comparison does: the sizes that every row shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SIZES", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one comparison.

    Attributes
    ----------
    vit : dict
        Arguments of timm's ``vit_base_patch16_224``; empty for ViT-B/16 itself.
    images, batch : int
        Recorded through the network, and how many at once.
    searched, units : int
        Images and units of the search for exemplars, whose activations are given.
    described, concepts, neurons, dim : int
        Images, concepts and neurons of the labels; dimensions of embeddings.
    paired : int
        Images of the monosemanticity score.
    top : int
        Exemplars for each unit.
    repeats : int
        Timings of whatever is not timed batch by batch.
    """

    vit: dict[str, Any]
    images: int
    batch: int
    searched: int
    units: int
    described: int
    concepts: int
    neurons: int
    dim: int
    paired: int
    top: int = 16
    repeats: int = 3


SIZES = {
    "full": Sizes({}, 256, 32, 4096, 36_864, 10_000, 3_783, 3_072, 512, 2_000),
    "brief": Sizes({}, 32, 8, 4096, 36_864, 10_000, 3_783, 3_072, 512, 2_000),
    "tiny": Sizes(
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
        24, 8, 64, 40, 200, 50, 30, 16, 60, repeats=2,
    ),
}  # fmt: skip
