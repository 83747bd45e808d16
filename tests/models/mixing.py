"""What the tests of mixers share: queries, keys and values of no two equal sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polysem.models.mixers import Softmax

GRID = (2, 3)
#: 5 images, 2 heads, 6 tokens, 4 features a head
SHAPE = (5, 2, 6, 4)
NO_DROP = nn.Dropout(0.0)


def made(mixer: type[Softmax], **options: Any) -> Any:
    """Build a mixer in float64 for two heads of four features on a grid of 2 × 3."""
    torch.manual_seed(0)
    return mixer(2, 4, **{"grid": GRID, "dtype": torch.float64, **options})


def drawn(seed: int = 0, n_tokens: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (*SHAPE[:2], n_tokens, SHAPE[3])
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=torch.float64).unbind(0)
    return 2 * q, k, v  # some weights are large, some trivial


def mixed(mixer: Softmax, bias: Tensor | None = None, *, fused: bool = True, **more: Any) -> Tensor:
    q, k, v = drawn()
    z: Tensor = mixer(q, k, v, bias, drop=NO_DROP, fused=fused, **more)
    return z


def slow_softmax(bias: Tensor | None = None) -> Tensor:
    """Return the pattern [image, head, query, key] of `drawn`, one weight after the other."""
    q, k, _ = drawn()
    out = torch.empty(*SHAPE[:3], SHAPE[2], dtype=torch.float64)
    for image in range(SHAPE[0]):
        for head in range(SHAPE[1]):
            for query in range(SHAPE[2]):
                logits = torch.stack([q[image, head, query] @ k[image, head, j] for j in range(6)])
                logits = logits / SHAPE[3] ** 0.5
                if bias is not None:
                    logits = logits + bias.expand(*SHAPE[:2], 6, 6)[image, head, query]
                weights = (logits - logits.max()).exp()
                out[image, head, query] = weights / weights.sum()
    return out


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
