"""A run with everything that the site shows, and names that would run as code if let."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from drawn_run import PlainSource
from PIL import Image
from studied_run import studied_run, study_arrays

from polysem.analysis.coadaptation import add_head_tables
from polysem.report.site.faces import all_faces
from polysem.store.additions import add_arrays, add_table
from polysem.store.run import Run

EVIL = "<script>window.hurt=1</script>"
CLASSES = (EVIL, "a&b\"'</title>")
N_IMAGES = 24


def picture(image: int) -> Image.Image:
    """Return a picture that differs for each image."""
    y, x = np.mgrid[:64, :64]
    wave = 127 + 120 * np.sin((x * (image % 5 + 1) + y * (image % 3 + 1)) / 12)
    pixels = np.stack([wave, 255 - wave, np.full_like(wave, 10 * image)], axis=2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def bare_run(out: Path) -> Run:
    """Return a run with heads studied and nothing else."""
    keys = [f"<img src=x onerror=hurt()> {i}.png" for i in range(N_IMAGES)]
    labels = np.arange(N_IMAGES) % 2
    source = PlainSource("photos <b>", keys, labels=labels, classes=CLASSES)
    return studied_run(out, study_arrays(N_IMAGES, 2, 3), source=source)


def full_run(out: Path) -> Run:
    """Return a run with every table that the site reads."""
    run = bare_run(out)
    add_head_tables(run)
    faces = all_faces(run)
    rng = np.random.default_rng(0)
    n = len(faces)
    keys: dict[str, Any] = {name: faces[name].to_numpy() for name in ("site", "unit", "tail")}
    scores = {name: rng.gamma(2.0, size=n) for name in ("excess_rank", "ms_above_chance", "ms")}
    _add(run, "polysemanticity", keys | scores | {
        "effective_classes": rng.uniform(1, 2, n), "best_class": rng.choice(np.array(CLASSES), n),
    })  # fmt: skip
    _add(run, "clusters", keys | {
        "cluster": np.arange(n) % 3 - 1, "firmness": rng.uniform(size=n),
        "map_x": np.arange(n) * 1.0, "map_y": np.arange(n) % 7 * 1.0,
    })  # fmt: skip
    _add(run, "cluster_summary", {
        "cluster": [0, 1], "faces": [n // 3, n // 3], "sites": [2, 2], "main_site": "hook_pooled",
        "tightness": [0.5, 0.4], "top_class": [EVIL, None],
    })  # fmt: skip
    _add(run, "cluster_quality", {
        "feature": ["centroid"], "faces": [n], "clusters": [2], "grouped_share": [0.67],
        "stability": [0.7], "silhouette": [0.2], "null_silhouette": [0.0], "p": [0.05],
    })  # fmt: skip
    named = np.arange(n) % 2 == 0
    concepts = [EVIL if i == 0 else f"thing {i}" for i in range(n)]
    _add(run, "labels", keys | {
        "rank": 1, "concept": concepts, "p_value": rng.uniform(size=n), "named": named,
        "q_value": rng.uniform(size=n), "auroc": rng.uniform(size=n),
        "rank_correlation": rng.uniform(size=n), "score": rng.uniform(size=n), "n_exemplars": 8,
        "seen": "images", "method": "soft-wpmi",
    })  # fmt: skip
    _add(run, "unit_facets", keys | {"facets": np.arange(n) % 3, "excess": rng.gamma(2.0, size=n)})
    _add(run, "facets", keys | {
        "facet": 0, "exemplars": 3, "share": 0.7, "best_image": 0, "ranks": [[0, 1, 2]] * n,
    })  # fmt: skip
    _add(run, "edges", {
        "site": ["blocks.1.mlp.hook_post"], "unit": [0], "tail": ["upper"], "share": [0.4],
        "source_site": ["blocks.0.mlp.hook_post"], "source_unit": [1], "source_tail": ["upper"],
        "rank": [1], "contribution": [0.1],
    })  # fmt: skip
    site = "blocks.1.mlp.hook_post"
    shape = (*run.units(site)["top_value"].shape, 4, 4)
    maps = xr.Variable(("tail", "unit", "rank", "y", "x"), rng.normal(size=shape).astype("f4"))
    found = xr.Dataset({"contribution": maps}, coords={"tail": run.units(site)["tail"]})
    add_arrays(run, "contributions", {site: found})
    return run


def _add(run: Run, name: str, columns: dict[str, Any]) -> None:
    add_table(run, name, pd.DataFrame(columns), meanings=dict.fromkeys(columns, f"<i>{name}</i>"))
