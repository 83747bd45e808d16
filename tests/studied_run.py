"""A run whose heads were "studied": arrays are drawn at random, no model and no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from drawn_run import PlainSource, random_activations, write_run

from polysem.store.additions import add_arrays
from polysem.store.run import Run
from polysem.store.schema import GATES, dataset

SHARES = [step / 8 for step in range(9)]


def study_arrays(
    n_images: int, n_layers: int, n_heads: int, *, n_pairs: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Return every array of `GATES`, with interactions that `exact` confirms."""
    rng = np.random.default_rng(seed)
    n = n_layers * n_heads
    sizes = {
        "image": n_images, "layer": n_layers, "head": n_heads, "layer_2": n_layers,
        "head_2": n_heads, "pair": n_pairs, "draw": 3, "share": 9, "y": 4, "x": 4,
    }  # fmt: skip
    arrays: dict[str, Any] = {
        name: rng.normal(size=[sizes[dim] for dim in variable.dims]).astype("f4")
        for name, variable in GATES.items()
    }
    for name in ("divergence", "opposition", "cka", "class_share", "drop_correct", "correct"):
        arrays[name] = rng.uniform(size=arrays[name].shape).astype("f4")
    for name in ("correct", "drop_correct"):
        arrays[name] = arrays[name].round()
    above = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = sorted(rng.permutation(len(above))[:n_pairs])
    first, second = np.array([above[k] for k in chosen]).T
    square = arrays["interaction"].reshape(n_images, n, n)
    square += rng.normal(size=(n, n))  # what all images share
    square[:, range(n), range(n)] = 0
    both = (square + square.transpose(0, 2, 1)) / 2
    arrays["exact"] = both[:, first, second]
    arrays["pair_first"], arrays["pair_second"] = first, second
    arrays["held_to"] = np.arange(n_images) % 2
    arrays["attention_map"] = rng.dirichlet(np.ones(16), (n_images, n_layers, n_heads)).reshape(
        n_images, n_layers, n_heads, 4, 4
    )
    return arrays


def studied_run(
    out: Path,
    arrays: dict[str, Any],
    *,
    source: Any = None,
    fingerprint: str = "0" * 64,
    **settings: Any,
) -> Run:
    """Write a run with these arrays."""
    n_images, n_layers = arrays["cost_zero"].shape[:2]
    if source is None:
        keys = [f"image {i}" for i in range(n_images)]
        source = PlainSource("photos", keys, fingerprint=fingerprint)
    run = write_run(out, source, random_activations(n_images))
    layers = list(range(n_layers))
    coords = {"image": np.arange(n_images), "layer": layers, "layer_2": layers, "share": SHARES}
    found = dataset(GATES, arrays, coords)
    found.attrs = {"target": "margin", "method": "gradients", "notes": [], **settings}
    add_arrays(run, "gates", found)
    return Run.open(out)
