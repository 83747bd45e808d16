"""Folders as polysem compare, evolve and explain write them, with names that would run as code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from site_run import EVIL

STEPS = [0, 10, 100]
SITES = ["blocks.0.mlp.hook_post", "hook_pooled"]


def comparison_folder(out: Path) -> Path:
    """Write a comparison of two arms: of units, of whole networks, and one that is missing."""
    out.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for measure, site, delta, q in [
        ("kurtosis", SITES[0], 0.5, 0.001), (EVIL, SITES[0], -0.2, 0.5),
        ("gini", SITES[1], 0.1, 0.9),
        ("accuracy", "", np.nan, 0.01), ("loss", "", np.nan, np.nan),
    ]:  # fmt: skip
        there = measure != "loss"
        rows.append({
            "arm": EVIL, "other": "vit", "table": "units", "measure": measure, "site": site,
            "value": 0.8, "other_value": 0.6, "difference": 0.2 if there else np.nan,
            "difference_low": 0.1, "difference_high": 0.3, "delta": delta, "delta_low": delta - 0.1,
            "delta_high": delta + 0.1, "p": q, "q": q, "resampled": "unit",
        })  # fmt: skip
    pd.DataFrame(rows).to_parquet(out / "comparison.parquet")
    _json(out / "comparison.json", {
        "arms": {EVIL: [{"path": "runs/a", "model": "a", "sha256": "0"}],
                 "vit": [{"path": "runs/b", "model": "b", "sha256": "1"}]},
        "data": {"name": "photos", "n_images": 24}, "notes": [f"a note with {EVIL}"],
    })  # fmt: skip
    return out


def evolution_folder(out: Path) -> Path:
    """Write an evolution over three snapshots; one site is called nothing."""
    (out / "tables").mkdir(parents=True)
    (out / "pictures").mkdir()
    rng = np.random.default_rng(0)
    layers = pd.DataFrame([
        {"site": site, "step": step, "cka_final": rng.uniform(), "born_correlation": rng.uniform(),
         "born_label": np.nan, "label_churn": np.nan, "excess_rank": rng.uniform(1, 3),
         "ms_above_chance": rng.uniform(), "accuracy": step / 100}
        for site in SITES for step in STEPS
    ])  # fmt: skip
    births = pd.DataFrame({
        "site": SITES[0], "unit": range(4), "tail": "upper", "final_label": None,
        "birth_label": pd.array([None] * 4, dtype="Int64"),
        "birth_correlation": pd.array([0, 10, 10, None], dtype="Int64"),
    })  # fmt: skip
    layers.to_parquet(out / "tables" / "layers.parquet")
    births.to_parquet(out / "tables" / "births.parquet")
    for name in ("scores", "unit_a_0"):
        Image.new("RGB", (2000, 300), "white").save(out / "pictures" / f"{name}.png")
    _json(out / "evolution.json", {
        "evolution": 1, "status": "complete", "model": {"name": EVIL, "classes": None},
        "data": {"name": "photos", "n_images": 24},
        "steps": [{"step": step, "checkpoint": "x", "sha256": "0"} for step in STEPS],
        "units_shown": [{"site": SITES[0], "unit": 0, "picture": "pictures/unit_a_0.png"}],
        "notes": [EVIL],
    })  # fmt: skip
    return out


def explanation_folder(out: Path) -> Path:
    """Write explanations of two images by two methods, one of them in colour."""
    (out / "images").mkdir(parents=True)
    rows = []
    for i in range(2):
        for method in ("bcos", "gradcam"):
            rows.append({
                "image": 5 + i, "key": f"{EVIL}/{i}.png", "label": "cat", "prediction": EVIL,
                "target": EVIL, "value": 3.5, "method": method,
                "error": 1e-6 if method == "bcos" else np.nan,
            })  # fmt: skip
        for name in ("image", "colour", "bcos", "gradcam"):
            Image.new("RGB", (64, 64), (40 * i, 90, 120)).save(
                out / "images" / f"{i:04d}-{name}.png"
            )
    pd.DataFrame(rows).to_csv(out / "index.csv", index=False)
    _json(out / "explain.json", {
        "format": 1, "methods": ["bcos", "gradcam"], "skipped": [EVIL], "data": "photos",
    })  # fmt: skip
    return out


def _json(file: Path, payload: dict[str, Any]) -> None:
    file.write_text(json.dumps(payload), encoding="utf-8")
