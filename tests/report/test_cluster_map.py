"""The map of units and the figure of layers: drawn from tables alone, for odd sizes too."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_run import PlainSource, random_activations, write_run

from polysem.errors import SpecError
from polysem.report.cluster_map import cluster_map
from polysem.report.layer_figure import layer_figure
from polysem.store.run import Run


def write_groups(run: Run, n: int, n_groups: int) -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(-1, n_groups, n) if n_groups else np.full(n, -1)
    table = pd.DataFrame(
        {"site": rng.choice(run.sites, n), "unit": np.arange(n), "tail": "upper", "cluster": group}
    )
    table[["map_x", "map_y"]] = rng.normal(size=(n, 2))
    summary = pd.DataFrame(
        {
            "cluster": range(n_groups), "faces": 9, "sites": 2, "main_site": "hook_pooled",
            "tightness": 0.5, "top_class": "a $ & <class> with a name that is far too long " * 3,
        }
    )  # fmt: skip
    quality = {
        "feature": "class", "faces": n, "min_size": 5, "clusters": n_groups, "grouped_share": 0.5,
        "stability": 0.9, "stability_low": 0.8, "silhouette": 0.2, "null_silhouette": 0.0, "p": 1,
    }  # fmt: skip
    for name, each in (("clusters", table), ("cluster_summary", summary)):
        each.to_parquet(run.path / "tables" / f"{name}.parquet")
    pd.DataFrame([quality]).to_parquet(run.path / "tables" / "cluster_quality.parquet")


@pytest.mark.parametrize("n_groups", [0, 1, 25])
def test_map_of_any_number_of_groups(n_groups: int, tmp_path: Path) -> None:
    source = PlainSource("plain", [str(i) for i in range(9)])
    run = write_run(tmp_path / "run", source, random_activations(9))
    with pytest.raises(SpecError, match="no table 'clusters'"):
        cluster_map(run)
    write_groups(run, 40, n_groups)
    figure = cluster_map(run)
    figure.canvas.draw()
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert f"{n_groups} groups of 40 faces" in words
    assert "Stability 0.900" in words
    assert ("no groups were found" in words) == (n_groups == 0)
    points = sum(len(c.get_offsets()) for c in figure.axes[1].collections)
    assert points == 40


def test_layers_of_two_networks() -> None:
    rows = [
        {"site": site, "measure": score, "value": 1.0, "value_low": 0.5, "value_high": 1.5,
         "other_value": 2.0, "other_value_low": 1.5, "other_value_high": np.inf}
        for site in ("blocks.0.mlp.hook_post", "blocks.0.attn.hook_z", "hook_pooled")
        for score in ("kurtosis", "hoyer", "ms_above_chance", "tail_ratio")
    ]  # fmt: skip
    figure = layer_figure(pd.DataFrame(rows), ("one", "two"))
    assert len(figure.axes) == 4  # the sheet, and three scores that are drawn
    ticks = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert ticks == ["0", "0 attn", "pooled"]
