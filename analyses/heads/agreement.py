"""How well estimates of all pairs of heads rank 200 pairs that are also ablated exactly.

python analyses/heads/agreement.py data/models/shapes_micro_bcos.safetensors [images]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from scipy.stats import spearmanr

from polysem.data.sources import load_data
from polysem.models.load import load_model
from polysem.probe.gates import GatedViT, Target, frozen, target_cost
from polysem.probe.interactions import by_gradients, by_hessian, exact_pairs

TARGETS: tuple[Target, ...] = ("margin", "loss")


def main(model: str, n_images: str = "24") -> None:
    """Print one line a target and method."""
    loaded = load_model(model)
    data = load_data("shapes:test?n=4000&size=64&label=colour", limit=int(n_images))
    pixels = torch.stack([loaded.transform(data.read(i)) for i in range(len(data))])
    images, labels = loaded.transform.normalize(pixels), torch.from_numpy(data.labels)
    vit = GatedViT(loaded.model)
    n = len(vit.heads)
    above = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = np.random.default_rng(0).permutation(len(above))[:200]
    pairs = [above[k] for k in sorted(chosen)]
    first, second = np.array(pairs).T
    with frozen(loaded.model):
        for target in TARGETS:
            cost = target_cost(target)
            exact = exact_pairs(vit, images, labels, cost, pairs, rows=64).mean(0)
            for method in (by_gradients, by_hessian):
                found = method(vit, images, labels, cost, rows=64).pairs.mean(0)
                both = (found + found.T)[first, second] / 2
                print(f"{target} {method.__name__}: {spearmanr(exact, both)[0]:.3f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
