"""Scores, facets and clusters of a finished run as large as ViT-B's: time and memory.

    python tests/benchmarks/bench_polysemanticity.py [units a site] [images]

Writes a run of 12 sites of 3,072 units on 10,000 images with drawn statistics (a sample of 1,024
images' activations, 16 exemplars, streamed monosemanticity and centroids in 512 dimensions, 20
replicates), then scores its units, finds their facets, groups units and facets, and prints CPU
seconds, seconds and peak memory of each step.
"""

import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from polysem.analysis.clusters import clusters
from polysem.analysis.facet_table import facets
from polysem.analysis.polysemanticity import polysemanticity
from polysem.analysis.superposition import superposition
from polysem.store.run import Run
from polysem.store.schema import QUANTILES, UNITS, dataset
from polysem.store.writer import RunWriter

SITES, CLASSES, SAMPLE, RANKS, DIM, REPLICATES = 12, 10, 1024, 16, 512, 20


def write_large_run(out: Path, n_units: int, n_images: int) -> Run:
    rng = np.random.default_rng(0)
    e = rng.normal(size=(n_images, DIM)).astype("f4") + 0.1
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    attrs = {"encoder": "drawn", "fingerprint": "f" * 64}
    groups = rng.normal(size=(60, DIM)).astype("f4")
    sites = {}
    with RunWriter(out) as writer:
        none = [None] * n_images
        writer.add_images(
            {
                "image": np.arange(n_images), "key": [str(i) for i in range(n_images)],
                "label": np.arange(n_images) % CLASSES, "prediction": none, "loss": none,
                "correct": none,
            }
        )  # fmt: skip
        writer.add_embeddings(e, attrs)
        for layer in range(SITES):
            site = f"blocks.{layer}.mlp.hook_post"
            writer.write_units(site, _units(rng, n_units, n_images, groups))
            sites[site] = {
                "dims": ["image", "token", "d_mlp"], "unit": "d_mlp", "n_units": n_units,
                "pools": ["max"], "tails": ["upper"], "signed": False, "grid": None,
            }  # fmt: skip
        writer.write_table("units", pd.DataFrame({"site": [], "unit": []}))
        data = {"name": "drawn", "fingerprint": "0" * 64, "n_images": n_images, "labelled": True}
        writer.finish(
            {
                "status": "complete", "n_images": n_images, "sites": sites, "embedding": attrs,
                "model": {"name": "drawn"}, "options": {"top_k": RANKS}, "skipped": [],
                "data": {**data, "classes": [str(c) for c in range(CLASSES)]},
            }
        )  # fmt: skip
    return Run.open(out)


def _units(rng: np.random.Generator, n_units: int, n_images: int, groups: np.ndarray):
    kept = rng.gamma(0.5, size=(1, min(SAMPLE, n_images), n_units)).astype("f4")
    noise = rng.normal(size=(1, n_units, DIM)).astype("f4")
    counts = np.full(CLASSES, n_images // CLASSES)
    class_means = rng.gamma(4, 0.25, size=(1, CLASSES, n_units))
    score = rng.random((1, n_units))
    arrays = {
        "count": n_images,
        "mean": kept.mean(1), "variance": kept.var(1), "kurtosis": rng.gamma(3, size=(1, n_units)),
        "min": np.zeros((1, n_units), "f4"), "max": kept.max(1),
        "quantile": np.quantile(kept, QUANTILES, axis=1).swapaxes(0, 1),
        "dead": np.zeros(n_units, bool),
        "class_sum": class_means * counts[:, None], "class_count": counts,
        "sample_image": np.sort(rng.choice(n_images, kept.shape[1], replace=False)),
        "sample_value": kept,
        "top_image": rng.integers(n_images, size=(1, n_units, RANKS)).astype(float),
        "top_value": np.ones((1, n_units, RANKS)),
        "monosemanticity": score,
        "centroid": 0.3 * groups[rng.integers(60, size=(1, n_units))] + 0.1 * noise,
        "replicate_monosemanticity": score + 0.01 * rng.normal(size=(REPLICATES, 1, n_units)),
        "replicate_mean": kept.mean(1) + 0.01 * rng.normal(size=(REPLICATES, 1, n_units)),
        "replicate_class_mean": rng.gamma(4, 0.25, size=(REPLICATES, CLASSES, 1, n_units)),
    }  # fmt: skip
    assert set(arrays) <= set(UNITS)
    return dataset(UNITS, arrays, {"pool": ["max"], "q": list(QUANTILES), "tail": ["upper"]})


def main() -> None:
    n_units = int(sys.argv[1]) if len(sys.argv) > 1 else 3072
    n_images = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        run = write_large_run(Path(folder) / "run", n_units, n_images)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        print(f"{SITES * n_units:,} units, {n_images:,} images; writing peaked at {before:.2f} GB")
        steps = {
            "scores": polysemanticity,
            "superposition": superposition,
            "facets": facets,
            "units' clusters": clusters,
            "facets' clusters": partial(clusters, of="facets"),
        }
        for name, step in steps.items():
            started, cpu = time.perf_counter(), time.process_time()
            step(run)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
            print(
                f"{name:<16} {time.process_time() - cpu:7.1f} CPU s "
                f"{time.perf_counter() - started:7.1f} s, peak {peak:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
