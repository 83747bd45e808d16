"""The streaming monosemanticity score beside its pairwise definition: time, memory, agreement."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from polysem.probe.embedding_sums import EmbeddingSums

__all__ = ["MEANINGS", "bench_monosemanticity", "pairwise_monosemanticity"]

#: What the columns of the bench's table hold.
MEANINGS = {
    "images": "images N",
    "units": "units scored",
    "dim": "dimensions of the embeddings",
    "pairwise_s": "CPU seconds of the definition, all pairs of images one by one, in float64; the "
    "time of the first rows, scaled up to all pairs, where `pairs_timed` is below 1",
    "pairs_timed": "share of the pairs that were computed",
    "streaming_s": "CPU seconds of the streaming score in batches, in float64",
    "ratio": "pairwise_s / streaming_s",
    "streaming_mb": "memory that streaming added to its process at its peak, images left out",
    "difference": "largest difference of the two scores; NaN where not all pairs were computed",
}

_BATCH = 256


def pairwise_monosemanticity(
    activations: Tensor, embeddings: Tensor, *, rows: int | None = None
) -> Tensor:
    """Return the score [unit] by its definition: a sum over all pairs of images, in float64.

    Parameters
    ----------
    activations : Tensor
        [image, unit].
    embeddings : Tensor
        [image, dim].
    rows : int, optional
        Stop after the pairs of the first so many images, for timing.
    """
    wide = activations.double()
    low, high = wide.amin(0), wide.amax(0)
    scaled = (wide - low) / (high - low)
    e = torch.nn.functional.normalize(embeddings.double(), dim=1)
    above, below = torch.zeros_like(low), torch.zeros_like(low)
    for i in range(len(e) - 1 if rows is None else rows):
        weights = scaled[i] * scaled[i + 1 :]
        cosines = e[i + 1 :] @ e[i]
        above += (weights * cosines[:, None]).sum(0)
        below += weights.sum(0)
    return above / below


def bench_monosemanticity(
    *,
    n_images: tuple[int, ...] = (1000, 2000, 5000),
    n_units: int = 3072,
    dim: int = 512,
    exact_up_to: int = 2000,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure both on random activations and embeddings, each size in a process of its own.

    Parameters
    ----------
    n_images : tuple of int
        A line of the table each.
    n_units, dim : int
        Sizes.
    exact_up_to : int, default 2000
        Compute all pairs up to so many images; beyond, time a tenth of the pairs.
    report : callable
        Told about each finished line.

    Returns
    -------
    DataFrame
        Columns as in `MEANINGS`.
    """
    rows = []
    for n in n_images:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak of its own
            row = pool.apply(_measure, (n, n_units, dim, n <= exact_up_to))
        rows.append(row)
        report("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    return pd.DataFrame(rows, columns=list(MEANINGS))


def _measure(n: int, n_units: int, dim: int, every_pair: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(n, n_units, generator=generator) ** 4
    embeddings = torch.randn(n, dim, generator=generator) + 0.1
    EmbeddingSums(1, n_units, dim).update(activations[None, :1], embeddings[:1])  # warm up
    before = _peak_mb()
    started = time.process_time()
    sums = EmbeddingSums(1, n_units, dim)
    for some in torch.arange(n).split(_BATCH):
        sums.update(activations[None, some], embeddings[some])
    streamed = sums.monosemanticity()[0]
    streaming_s = time.process_time() - started
    streaming_mb = _peak_mb() - before
    # the first rows have the most pairs
    n_rows = n - 1 if every_pair else max(1, round(n * (1 - 0.9**0.5)))
    share = 1 - (n - n_rows) * (n - n_rows - 1) / (n * (n - 1))
    started = time.process_time()
    exact = pairwise_monosemanticity(activations, embeddings, rows=n_rows)
    pairwise_s = (time.process_time() - started) / share
    return {
        "images": n,
        "units": n_units,
        "dim": dim,
        "pairwise_s": pairwise_s,
        "pairs_timed": share,
        "streaming_s": streaming_s,
        "ratio": pairwise_s / streaming_s,
        "streaming_mb": streaming_mb,
        "difference": float((exact - streamed).abs().max()) if every_pair else float("nan"),
    }


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
