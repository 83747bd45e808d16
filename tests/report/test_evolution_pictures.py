"""Pictures over training: complete, legible, and about the numbers in the tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_run import Activations, PlainSource, random_activations
from evolved import write_series
from PIL import Image
from written import check_legible

from polysem.errors import SpecError
from polysem.report.evolution_maps import evolution_maps
from polysem.report.evolution_pictures import draw_evolution
from polysem.report.label_flow import label_flow
from polysem.report.score_ridges import _range, score_ridges
from polysem.report.unit_strip import clear_units, unit_strip
from polysem.store.evolution import Evolution

N = 60
MLP, POOLED = "blocks.0.mlp.hook_post", "hook_pooled"


def picture(image: int) -> Image.Image:
    return Image.new("RGB", (48, 32), (image, 90, 90))


@pytest.fixture(scope="module")
def evolution(tmp_path_factory: pytest.TempPathFactory) -> Evolution:
    labels = np.arange(N) % 2
    source = PlainSource("photos", [str(i) for i in range(N)], labels, ("a bird", "x" * 99))
    rng = np.random.default_rng(0)
    snapshots = []
    for seed in range(4):
        shown = random_activations(N, seed=min(seed, 2))
        wide = rng.normal(size=(N, 30)) + seed * labels[:, None] * (np.arange(30) % 3 - 1)
        snapshots.append(shown | {POOLED: Activations(wide, signed=False)})
    return write_series(tmp_path_factory.mktemp("evolved") / "a", source, snapshots)


def test_ridges_are_legible_and_of_sites_with_units_enough(evolution: Evolution) -> None:
    written = check_legible(score_ridges(evolution))
    assert POOLED in written and MLP not in written  # five units have no distribution
    assert {"Class selectivity", "Excess kurtosis", "Hoyer sparsity"} <= set(written)
    assert {"0", "1", "10", "100"} <= set(written)


def test_maps_say_what_the_table_says(evolution: Evolution) -> None:
    written = check_legible(evolution_maps(evolution))
    table = evolution.table("layers")
    for name in ("cka_final", "cka_previous", "born_correlation"):
        for value in table[name].dropna():
            assert f"{value:.2f}" in written
    assert any("at least 0.7" in text for text in written)


def test_flow_counts_faces_and_changes(evolution: Evolution) -> None:
    figure = label_flow(evolution)
    assert figure is not None
    written = check_legible(figure)
    table = evolution.table("trajectories")
    key = ["site", "unit", "tail"]
    alive = ~table.groupby(key)["dead"].transform("any")
    last = table[alive & (table["step"] == 100)]
    counts = last["label"].value_counts()
    assert f"a bird  {counts['a bird']}" in written or f"a bird {counts['a bird']}" in written
    assert any(t.startswith("no label") and t.endswith(str(last["label"].isna().sum()))
               for t in written)  # fmt: skip
    labels = table[alive].pivot(index=key, columns="step", values="label").fillna("").to_numpy()
    changed = (labels[:, 1:] != labels[:, :-1]).mean(0)
    said = ", ".join(f"{100 * share:.0f} %" for share in changed)
    assert f"Faces whose label changes from one snapshot to the next: {said}." in written


def test_a_strip_has_a_row_a_snapshot(evolution: Evolution) -> None:
    figure = unit_strip(evolution, MLP, 0, picture)
    written = check_legible(figure)
    assert [t for t in written if t.startswith("step ")] == [
        "step 0", "step 1", "step 10", "step 100",
    ]  # fmt: skip
    assert {"Highest", "Lowest"} <= set(written)
    assert sum(t.startswith("r ") for t in written) == 4
    check_legible(unit_strip(evolution, MLP, 2, picture))  # dead from first to last
    check_legible(unit_strip(evolution, "blocks.0.attn.hook_z", 1, picture))
    with pytest.raises(SpecError, match="has no unit 5"):
        unit_strip(evolution, MLP, 5, picture)
    with pytest.raises(SpecError, match="has no site"):
        unit_strip(evolution, "hook_poold", 0, picture)


def test_shown_units_are_selective_ones_of_sites_with_many(evolution: Evolution) -> None:
    table = evolution.table("trajectories")
    last = table[(table["step"] == 100) & (table["site"] == POOLED)]
    best = int(last.loc[last["best_class_auroc"].idxmax(), "unit"])
    assert clear_units(evolution) == [(POOLED, best)]


def test_all_pictures_are_written_and_an_old_one_of_labels_goes(
    evolution: Evolution, tmp_path: Path
) -> None:
    shown = draw_evolution(evolution, picture, [(MLP, 1)])
    assert shown == [{"site": MLP, "unit": 1, "picture": f"pictures/unit_{MLP}_1.png"}]
    names = {path.name for path in (evolution.path / "pictures").iterdir()}
    assert names == {"scores.png", "labels.png", "layers.png", f"unit_{MLP}_1.png"}
    bare = PlainSource("bare", [str(i) for i in range(N)])
    few = {POOLED: Activations(np.random.default_rng(0).normal(size=(N, 4)))}
    unlabelled = write_series(tmp_path / "b", bare, [few, few])
    (tmp_path / "b" / "pictures").mkdir()
    (tmp_path / "b" / "pictures" / "labels.png").touch()
    assert label_flow(unlabelled) is None
    draw_evolution(unlabelled, picture, clear_units(unlabelled))
    assert not (tmp_path / "b" / "pictures" / "labels.png").exists()
    assert "no site has 20 living faces of units" in check_legible(score_ridges(unlabelled))


def test_scores_that_are_all_alike_have_an_axis_without_offset() -> None:
    low, high = _range(pd.Series([1.0, 1.0 + 1e-9, float("nan")]))
    assert low == pytest.approx(0.9) and high == pytest.approx(1.1)
    assert _range(pd.Series([0.0, 0.0]))[0] < 0 < _range(pd.Series([0.0, 0.0]))[1]
