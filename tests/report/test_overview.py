"""The overview: all sites and heads, with numbers of the run."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import (
    Activations,
    PlainSource,
    cnn_activations,
    random_activations,
    write_run,
)  # fmt: skip
from matplotlib.collections import QuadMesh
from written import check_legible, texts

from polysem.report import overview as overview_module
from polysem.report.overview import accuracy, run_overview

N = 30


def source(labels: np.ndarray | None = None) -> PlainSource:
    classes = None if labels is None else ("a", "b", "c")
    return PlainSource("photos", [str(i) for i in range(N)], labels, classes)


def test_a_transformer_with_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(N) % 3
    predictions = np.where(np.arange(N) < 6, (labels + 1) % 3, labels)
    shown = random_activations(N)
    run = write_run(tmp_path / "a", source(labels), shown, predictions=predictions, patterns=True)
    monkeypatch.setattr(overview_module, "_SLAB", 7)
    figure = run_overview(run)
    written = check_legible(figure)
    assert "30 images of photos, accuracy 80.0 %, 20 units at 4 sites, 2 dead" in written
    assert {"blocks.*.mlp.hook_post", "blocks.*.attn.hook_z", "hook_pooled", "Dead units"} <= set(
        written
    )
    first, *others = figure.findobj(QuadMesh)[:3]
    assert len(others) == 2
    norms = shown["blocks.0.attn.hook_z"].values.mean((2, 3)).mean(0)
    np.testing.assert_allclose(np.ravel(first.get_array()), norms, rtol=1e-5)
    assert accuracy(run) == pytest.approx(0.8)


def test_a_cnn_without_heads_or_labels(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", source(), cnn_activations(N))
    figure = run_overview(run)
    written = check_legible(figure)
    assert "30 images of photos, 10 units at 2 sites, 0 dead" in written
    assert not figure.findobj(QuadMesh)
    assert "Dead units" not in written  # nothing to draw
    assert accuracy(run) is None


def test_a_deep_model_with_peaked_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shown = {}
    for layer in range(12):
        shown[f"blocks.{layer}.attn.hook_z"] = Activations(rng.gamma(2.0, size=(N, 12, 2, 2)))
        values = rng.gamma(0.02, size=(N, 30, 2, 2))
        shown[f"blocks.{layer}.mlp.hook_post"] = Activations(values, signed=False)
    figure = run_overview(write_run(tmp_path / "a", source(), shown))
    check_legible(figure)
    assert figure.axes[1].get_yscale() == "symlog"
    assert {"11", "Length of head outputs"} <= set(texts(figure))
