"""What the interactions of heads cost beside ablating every pair from scratch, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from polysem.data.sources import load_data
from polysem.models.load import LoadedModel, load_model
from polysem.probe.gates import GatedViT, frozen, target_cost
from polysem.probe.head_batch import METHODS, Method
from polysem.probe.interactions import Cost, Interactions, exact_pairs

__all__ = ["bench_heads"]


def bench_heads(
    *,
    model: str = "timm:vit_small_patch16_224",
    n_images: int = 64,
    n_pairs: int = 24,
    batch_size: int = 32,
    methods: tuple[Method, ...] = ("gradients", "hessian"),
    trained: str | Path | None = None,
    trained_data: str = "shapes:test?n=4000&size=64&label=colour",
    trained_images: int = 64,
    trained_pairs: int = 200,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Time the interaction of all pairs of heads, and of a sample of pairs.

    Seconds are of CPU time, all threads together, so that what else runs on the machine does not
    count. Brute force runs the whole network for each pair with both heads ablated. It is timed on
    `n_pairs` random pairs; for all pairs that time is extrapolated. From scratch, the sample also
    needs each of its heads ablated alone and the intact network; so does ``prefix reuse``.

    Parameters
    ----------
    model : str
        Whose time is measured, on random images; untrained heads rank at random.
    n_images, n_pairs, batch_size : int
        Images, pairs of the sample, rows side by side.
    methods : tuple of str
        Ways to estimate all pairs.
    trained, trained_data, trained_images, trained_pairs
        A trained model on which estimates are also held against exact interactions, if given.
    report : callable
        Told each step.

    Returns
    -------
    DataFrame
        model, method, images, pairs, seconds, ratio_to_brute_force (seconds over those of brute
        force for the same pairs), rank_correlation (with exact interactions on the sample).
    """
    torch.manual_seed(0)
    loaded = load_model(model)
    noise = torch.randint(0, 256, (n_images, 3, *loaded.transform.size), dtype=torch.uint8)
    images = loaded.transform.normalize(noise)
    with torch.no_grad():
        labels = loaded.model(images).argmax(1)
    tables = [_bench(loaded, images, labels, n_pairs, batch_size, methods, report)]
    if trained is not None:
        loaded, source = load_model(str(trained)), load_data(trained_data, limit=trained_images)
        pixels = torch.stack([loaded.transform(source.read(i)) for i in range(len(source))])
        assert source.labels is not None
        tables.append(
            _bench(
                loaded, loaded.transform.normalize(pixels), torch.from_numpy(source.labels),
                trained_pairs, batch_size, methods, report,
            )
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _bench(
    loaded: LoadedModel,
    images: Tensor,
    labels: Tensor,
    n_pairs: int,
    batch_size: int,
    methods: tuple[Method, ...],
    report: Callable[[str], None],
) -> pd.DataFrame:
    vit, cost = GatedViT(loaded.model), target_cost("margin")
    n = len(vit.heads)
    above = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = np.random.default_rng(0).permutation(len(above))[:n_pairs]
    pairs = [above[p] for p in sorted(chosen)]
    rows: list[tuple[str, int, float, float, float]] = []
    some = [slice(at, at + batch_size) for at in range(0, len(images), batch_size)]

    def timed(work: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, float]:
        start = time.process_time()
        found = torch.cat([work(images[at], labels[at]) for at in some])
        return found, time.process_time() - start

    with frozen(loaded.model):
        vit.model(images[:1])  # first calls choose kernels
        both, seconds = timed(lambda x, y: _scratch(vit, x, y, cost, [list(p) for p in pairs]))
        brute = seconds / len(pairs) * len(above)
        singles = sorted({head for pair in pairs for head in pair})
        alone, more = timed(lambda x, y: _scratch(vit, x, y, cost, [[], *([h] for h in singles)]))
        at = {head: k for k, head in enumerate(singles, start=1)}
        first, second = ([at[pair[k]] for pair in pairs] for k in (0, 1))
        scratch = both - alone[:, first] - alone[:, second] + alone[:, :1]
        rows.append(("from scratch", len(pairs), seconds + more, 1.0, 1.0))
        report(f"from scratch: {seconds + more:.1f} s for {len(pairs)} pairs")
        reused, seconds = timed(lambda x, y: exact_pairs(vit, x, y, cost, pairs, rows=batch_size))
        ratio = seconds / rows[0][2]
        rows.append(("prefix reuse", len(pairs), seconds, ratio, _agree(reused, scratch)))
        report(f"prefix reuse: {seconds:.1f} s, {1 / ratio:.2f} times faster")
        rows.append(("brute force (extrapolated)", len(above), brute, 1.0, 1.0))
        for name in methods:

            def estimate(x: Tensor, y: Tensor, name: Method = name) -> Tensor:
                found: Interactions = METHODS[name](vit, x, y, cost, rows=batch_size)
                return (found.pairs + found.pairs.mT) / 2

            all_pairs, seconds = timed(estimate)
            i, j = np.array(pairs).T
            agreement = _agree(all_pairs[:, i, j], reused)
            rows.append((name, len(above), seconds, seconds / brute, agreement))
            report(f"{name}: {seconds:.1f} s for all pairs, 1/{brute / seconds:.1f} of brute force")
    columns = ["method", "pairs", "seconds", "ratio_to_brute_force", "rank_correlation"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(0, "model", loaded.name)
    table.insert(1, "images", len(images))
    return table


def _scratch(
    vit: GatedViT, images: Tensor, labels: Tensor, cost: Cost, sets: list[list[int]]
) -> Tensor:
    """Return the cost without each set of heads [image, set], each by a whole pass."""
    found = []
    with torch.no_grad():
        for off in sets:
            edits = vit.without(len(images), [off], images)
            found.append(cost(vit.finish(vit.embed(images), 0, edits), labels))
    return torch.stack(found, dim=1)


def _agree(one: Tensor, other: Tensor) -> float:
    return float(spearmanr(one.mean(0), other.mean(0))[0])
