"""The table of scores from runs whose activations are known, and runs that lack something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_run import Activations, PlainSource, random_activations, write_run

from polysem.analysis import excitation, monosemanticity, peer_scores, selectivity
from polysem.analysis.faces import faces
from polysem.analysis.polysemanticity import MEANINGS, polysemanticity
from polysem.errors import RunError, SpecError
from polysem.store.additions import add_arrays
from polysem.store.run import Run
from polysem.store.schema import EMBEDDINGS, dataset

N, DIM = 40, 6


def a_run(
    folder: Path, *, labels: np.ndarray | None = None, embedded: bool = True, n: int = N,
    classes: tuple[str, ...] | None = ("a", "b", "c"),
) -> tuple[Run, dict[str, Activations]]:  # fmt: skip
    source = PlainSource(
        "plain", [f"k{i}" for i in range(n)], labels, None if labels is None else classes
    )
    shown = random_activations(n)
    run = write_run(folder / "run", source, shown, skipped=())
    if embedded:
        embed(run)
    return run, shown


def embed(run: Run) -> np.ndarray:
    values = np.random.default_rng(5).normal(0.4, 1, (len(run.images), DIM))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    arrays = dataset(EMBEDDINGS, {"embedding": values.astype(np.float32)}, {})
    arrays["embedding"].attrs |= {"encoder": "drawn", "fingerprint": "f"}
    add_arrays(run, "embeddings", arrays)
    return values


LABELS = np.arange(N) % 3


def of_face(shown: Activations, tail: str) -> np.ndarray:
    values = shown.values.astype(np.float32)
    if values.ndim == 4:
        values = values.max((2, 3)) if tail == "upper" else values.min((2, 3))
    return values if tail == "upper" else -values


def test_every_score_equals_its_function_on_the_activations(tmp_path: Path) -> None:
    run, shown = a_run(tmp_path, labels=LABELS)
    table = polysemanticity(run, progress=False)
    e = run.embeddings.to_numpy()
    assert list(table.columns) == list(MEANINGS)
    assert table.attrs["notes"] == []
    assert not table.duplicated(["site", "unit", "tail"]).any()
    faces = table.groupby(["site", "tail"], sort=False)
    assert len(faces) == 6  # two sites fire both ways
    for (site, tail), rows in faces:
        a = of_face(shown[str(site)], str(tail)).astype(float)
        means = selectivity.class_means(a, LABELS)
        aurocs = selectivity.class_aurocs(a, LABELS)
        exact = {
            "mean": a.mean(0),
            "kurtosis": excitation.excess_kurtosis(a),
            "hoyer": excitation.hoyer_sparsity(a),
            "treves_rolls": excitation.treves_rolls_sparsity(a),
            "tail_ratio": excitation.tail_ratio(a),
            "gini": excitation.gini_index(a),
            "near_max_share": excitation.near_max_share(a),
            "half_mass_share": excitation.half_mass_share(a),
            "selectivity": selectivity.selectivity_index(means),
            "effective_classes": selectivity.effective_classes(means),
            "best_class_auroc": aurocs.max(0),
            "ms": monosemanticity.monosemanticity_score(a, e),
        }
        for name, values in exact.items():
            np.testing.assert_allclose(rows[name], values, rtol=1e-5, atol=1e-7, err_msg=name)
        error = 1.96 * monosemanticity.monosemanticity_error(a, e)
        np.testing.assert_allclose(rows["ms_high"] - rows["ms"], error, rtol=1e-5)
        top = peer_scores.top_exemplars(a, e, 8)
        if (run.units(str(site))["n_exemplars"] == 8).all():
            np.testing.assert_allclose(rows["clarity"], peer_scores.clarity_score(top), rtol=1e-5)
            redundancy = peer_scores.redundancy_score(top)
            np.testing.assert_allclose(rows["redundancy"], redundancy, rtol=1e-5)
        living = ~rows["dead"].to_numpy()
        best = np.array(["a", "b", "c"])[aurocs[:, living].argmax(0)]
        assert rows["best_class"][living].tolist() == best.tolist()


def test_dead_units_are_flagged_and_without_scores(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, labels=LABELS)
    table = polysemanticity(run, progress=False)
    dead = table[table["dead"]]
    assert set(dead["unit"]) == {2}
    scores = [n for n in MEANINGS if n not in (
        "site", "unit", "tail", "pool", "dead", "images", "scored_images", "mean", "mean_low",
        "mean_high", "best_class")]  # fmt: skip
    assert dead[scores].isna().to_numpy().all()
    assert dead["best_class"].isna().all()


def test_two_centres_are_computed_on_request(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, labels=LABELS)
    site = "blocks.1.mlp.hook_post"
    table = polysemanticity(run, sites=site, peers=True, progress=False)
    rows = faces(run, site)[0].rows_of(run.units(site)["top_image"].sel(tail="upper").fillna(0))
    exact = peer_scores.two_centre_polysemanticity(run.embeddings.to_numpy()[rows])
    full = run.units(site)["n_exemplars"].sel(tail="upper").to_numpy() == 8
    full &= ~table["dead"].to_numpy()
    np.testing.assert_allclose(table["two_centre"][full], exact[full], rtol=1e-4)


def test_the_table_is_kept_with_its_meanings(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, labels=LABELS)
    table = polysemanticity(run, sites="hook_pooled", progress=False)
    kept = Run.open(run.path).table("polysemanticity")
    assert kept.attrs["columns"] == MEANINGS
    pd.testing.assert_frame_equal(kept, table, check_dtype=False)
    assert set(kept["site"]) == {"hook_pooled"}


def test_above_chance_is_zero_for_a_unit_that_answers_to_all_images_alike(tmp_path: Path) -> None:
    n = 400
    values = np.random.default_rng(0).random((n, 300))
    source = PlainSource("plain", [str(i) for i in range(n)])
    run = write_run(tmp_path / "run", source, {"hook_pooled": Activations(values)})
    embed(run)
    above = polysemanticity(run, progress=False)["ms_above_chance"]
    assert abs(above.mean()) < 0.002


def test_without_labels_all_else_is_scored(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path)
    table = polysemanticity(run, progress=False)
    (note,) = table.attrs["notes"]
    assert note.startswith("the images have no labels: class selectivity is left out")
    living = table[~table["dead"]]
    assert living[["selectivity", "effective_classes", "best_class_auroc"]].isna().to_numpy().all()
    assert living[["ms", "kurtosis", "gini"]].notna().to_numpy().all()


def test_without_embeddings_all_else_is_scored(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, labels=LABELS, embedded=False)
    table = polysemanticity(run, progress=False)
    (note,) = table.attrs["notes"]
    assert "no embeddings: monosemanticity, clarity and redundancy are left out" in note
    assert f"polysem embed {run.path}" in note
    living = table[~table["dead"]]
    assert living[["ms", "ms_low", "clarity", "redundancy"]].isna().to_numpy().all()
    assert living[["selectivity", "hoyer"]].notna().to_numpy().all()


def test_with_one_class_all_else_is_scored(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, labels=np.ones(N, dtype=int))
    table = polysemanticity(run, progress=False)
    (note,) = table.attrs["notes"]
    assert note.startswith(f"all {N} images are of one class: class selectivity needs two")
    living = table[~table["dead"]]
    assert living[["selectivity", "effective_classes", "best_class_auroc"]].isna().to_numpy().all()
    assert living[["ms", "hoyer"]].notna().to_numpy().all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_images_than_exemplars(n: int, tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, labels=LABELS[:n], n=n)
    table = polysemanticity(run, progress=False)
    assert any(
        f"{n} images are fewer than the 8 exemplars asked for" in note
        for note in table.attrs["notes"]
    )
    if n == 1:
        assert table["dead"].all()


def test_embeddings_of_other_images_are_refused(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, labels=LABELS)
    values = run.embeddings.to_numpy()[:-1]
    arrays = dataset(EMBEDDINGS, {"embedding": values}, {})
    arrays["embedding"].attrs |= {"encoder": "drawn", "fingerprint": "f"}
    add_arrays(run, "embeddings", arrays)
    with pytest.raises(RunError, match=r"holds 39 embeddings for 40 images; make them again"):
        polysemanticity(Run.open(run.path), progress=False)
    with pytest.raises(SpecError, match="no site of this model matches"):
        polysemanticity(run, sites="blocks.9.*", progress=False)
