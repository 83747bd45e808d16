"""Pictures of comparisons: everything in the tables is drawn, and can be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from written import check_legible, texts

from polysem.report.explanations import gallery_figure, localisation_figure, sanity_figure

METHODS = ["bcos", "gradcam_plusplus", "integrated_gradients", "noise"]
WORDS = {"title": "Explanations of a model", "subtitle": "ckpt.pt, images of photos"}


def comparison() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for i, method in enumerate(METHODS):
        for metric in ("grid_2x2", "mask_energy", "deletion", "insertion"):
            value = 0.9 - 0.2 * i if metric != "deletion" else 0.1 + 0.2 * i
            half = rng.uniform(0.01, 0.05)
            rows.append({
                "method": method, "control": method == "noise", "metric": metric,
                "better": "lower" if metric == "deletion" else "higher", "value": value,
                "low": value - half, "high": value + half,
                "chance": {"grid_2x2": 0.25, "mask_energy": 0.1}.get(metric, np.nan), "n": 9,
            })  # fmt: skip
    return pd.DataFrame(rows)


def forgetting(*, permuted: bool, orders: tuple[str, ...] = ("cascading", "independent")) -> Any:
    rows = []
    for method in METHODS:
        for similarity in ("spearman", "spearman_abs", "ssim", "hog"):
            one = {"method": method, "control": method == "noise", "similarity": similarity}
            for order in orders:
                for depth, layer in enumerate(["none", "head", "blocks.1", "patch_embed.proj"]):
                    rows.append({
                        **one, "order": order, "depth": float(depth), "layer": layer,
                        "value": 1 - depth / 3,
                    })  # fmt: skip
            if permuted:
                rows.append(
                    {**one, "order": "data", "depth": np.nan, "layer": "labels", "value": 0.1}
                )
    return pd.DataFrame(rows)


def lines(figure: Figure) -> int:
    return sum(len(line.get_xdata()) == 4 for axes in figure.axes for line in axes.get_lines())


def words(figure: Figure) -> set[str]:
    """Return all texts, also slanted ones."""
    return {text.get_text() for text in figure.findobj(Text)}


def test_every_method_and_metric_has_a_point() -> None:
    table = comparison().sample(frac=1, random_state=0)
    figure = localisation_figure(table, **WORDS)
    written = check_legible(figure)
    assert {*METHODS, "Grid 2 × 2, own cell", "Deletion (lower is better)"} <= set(written)
    order = [text for text in texts(figure) if text in METHODS]
    assert order == METHODS  # the best first, controls last
    dots = [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "o"]
    assert len(dots) == 16


def test_without_intervals_and_chance() -> None:
    table = comparison()
    table = table[table["metric"] == "insertion"].assign(low=np.nan, high=np.nan)
    check_legible(localisation_figure(table, **WORDS))


@pytest.mark.parametrize("permuted", [False, True])
def test_every_method_has_a_line(permuted: bool) -> None:
    figure = sanity_figure(forgetting(permuted=permuted), **WORDS)
    written = set(texts(figure))
    assert {*METHODS, "Structural similarity", "patch_embed.proj"} <= written
    assert ("labels permuted" in written) == permuted
    assert lines(figure) == 2 * 4 * len(METHODS)
    diamonds = [x for axes in figure.axes for x in axes.get_lines() if x.get_marker() == "D"]
    assert sum(len(line.get_xdata()) for line in diamonds) == (2 * 4 * 4 if permuted else 0)


def test_one_order_and_gaps() -> None:
    table = forgetting(permuted=False, orders=("independent",))
    table.loc[table["depth"] == 2, "value"] = np.nan
    figure = sanity_figure(table, **WORDS)
    assert lines(figure) == 4 * len(METHODS)


@pytest.mark.parametrize(("n_methods", "size"), [(1, (16, 16)), (15, (12, 20))])
def test_the_gallery_has_a_row_a_picture(n_methods: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((3, *size), dtype=bool)
    masks[:2, 3:8, 3:9] = True  # the third has no object
    maps = {f"method_number_{i}": rng.normal(size=(3, *size)) for i in range(n_methods)}
    maps["method_number_0"][1] = 0  # a map of zeros is drawn white
    figure = gallery_figure(
        rng.integers(256, size=(3, *size, 3), dtype=np.uint8), maps, ["red", "blue", "a" * 60],
        masks=masks, colours=rng.uniform(size=(3, *size, 4)), **WORDS,
    )  # fmt: skip
    check_legible(figure)
    assert {"picture", "in colour", "red", *maps} <= words(figure)
    shown = [image for axes in figure.axes for image in axes.get_images()]
    assert len(shown) == 3 * (2 + n_methods)
    for image in shown:
        if np.ndim(image.get_array()) == 2:
            low, high = image.get_clim()
            assert low == -high


def test_a_gallery_of_plain_pictures() -> None:
    figure = gallery_figure(
        np.zeros((1, 8, 8, 3), dtype=np.uint8), {"edges": np.ones((1, 8, 8))}, ["class 0"], **WORDS
    )
    check_legible(figure)
    assert "edges" in words(figure)
    assert "in colour" not in words(figure)
