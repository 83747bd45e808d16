"""Units of a run that answer to the same classes end up in one group; what a run may lack."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_run import Activations, PlainSource, random_activations, write_run
from shell import polysem
from sklearn.metrics import adjusted_rand_score

from polysem.analysis import clusters as module
from polysem.analysis.clusters import (
    FACET_MEANINGS,
    FACET_QUALITY,
    FACET_SUMMARY,
    MEANINGS,
    QUALITY,
    SUMMARY,
    clusters,
)
from polysem.analysis.faces import faces
from polysem.analysis.facet_table import facets
from polysem.analysis.monosemanticity import centroids
from polysem.analysis.unit_features import centroid_features, class_features
from polysem.errors import DataError, RunError, SpecError
from polysem.store.additions import add_arrays
from polysem.store.run import Run
from polysem.store.schema import EMBEDDINGS, dataset

N, CLASSES, UNITS = 120, 4, 60


@pytest.fixture(autouse=True)
def flat_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP takes seconds to start and has its own test."""
    monkeypatch.setattr(module.grouping, "map_points", lambda d: d[:, :2].astype(float))


def tuned_run(folder: Path) -> tuple[Run, np.ndarray]:
    """Units tuned to one of four classes each; unit 7 is dead."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    tuned = np.arange(UNITS) % CLASSES
    values = (labels[:, None] == tuned[None]) + 0.1 * rng.random((N, UNITS))
    values[:, 7] = 3
    source = PlainSource("plain", [str(i) for i in range(N)], labels, tuple("abcd"))
    run = write_run(folder / "run", source, {"hook_pooled": Activations(values)})
    means = rng.normal(size=(CLASSES, 8))
    e = means[labels] + 0.2 * rng.normal(size=(N, 8)) + 2
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    arrays = dataset(EMBEDDINGS, {"embedding": e.astype(np.float32)}, {})
    arrays["embedding"].attrs |= {"encoder": "drawn", "fingerprint": "f"}
    add_arrays(run, "embeddings", arrays)
    return run, tuned


@pytest.mark.parametrize("feature", ["centroid", "class"])
def test_tuned_units_are_grouped_by_what_they_are_tuned_to(feature: str, tmp_path: Path) -> None:
    run, tuned = tuned_run(tmp_path)
    table = clusters(run, feature=feature, progress=False)
    assert list(table.columns) == list(MEANINGS)
    assert len(table) == 2 * (UNITS - 1)  # two faces of all but the dead one
    upper = table[table["tail"] == "upper"]
    assert adjusted_rand_score(tuned[upper["unit"]], upper["cluster"]) > 0.95
    quality = run.table("cluster_quality").iloc[0]
    assert set(quality.index) == set(QUALITY)
    assert quality["feature"] == feature
    assert quality["stability"] > 0.9
    assert quality["silhouette"] > quality["null_silhouette"]
    assert quality["p"] == pytest.approx(1 / 21)
    summary = run.table("cluster_summary")
    assert list(summary.columns) == list(SUMMARY)
    assert summary["faces"].is_monotonic_decreasing
    assert summary["faces"].sum() == (table["cluster"] >= 0).sum()
    for cluster, top in zip(summary["cluster"], summary["top_class"], strict=True):
        units = upper.loc[upper["cluster"] == cluster, "unit"]
        if len(units):
            assert top == "abcd"[tuned[units.iloc[0]]]
    from xarray import open_zarr

    arrays = open_zarr(run.path / "clusters.zarr", consolidated=False, chunks=None)
    assert arrays["direction"].shape[0] == len(table)
    assert arrays["centre"].shape[0] == len(summary)


def test_features_are_directions_from_the_mean(tmp_path: Path) -> None:
    run, _ = tuned_run(tmp_path)
    (upper, _) = faces(run, "hook_pooled")
    e = run.embeddings.to_numpy().astype(float)
    exact = centroids(upper.activations, e) - e.mean(0)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(centroid_features([upper]), exact, atol=1e-4)
    profiles = class_features([upper])
    assert np.isnan(profiles[7]).all()
    np.testing.assert_allclose(np.linalg.norm(np.delete(profiles, 7, 0), axis=1), 1, rtol=1e-5)
    assert (np.delete(profiles, 7, 0).argmax(1) == np.delete(np.arange(UNITS) % CLASSES, 7)).all()


def test_what_a_run_may_lack(tmp_path: Path) -> None:
    n = 12
    source = PlainSource("plain", [str(i) for i in range(n)])
    bare = write_run(tmp_path / "bare", source, random_activations(n))
    with pytest.raises(DataError, match=r"neither embeddings nor labels .* polysem embed"):
        clusters(bare, progress=False)
    with pytest.raises(RunError, match="holds no embeddings"):
        clusters(bare, feature="centroid", progress=False)
    source.labels, source.classes = np.arange(n) % 2, ("a", "b")
    two = write_run(tmp_path / "two", source, random_activations(n))
    with pytest.raises(SpecError, match="profiles over classes need three"):
        clusters(two, progress=False)
    source.labels, source.classes = np.arange(n) % 3, ("a", "b", "c")
    dead = write_run(tmp_path / "dead", source, {"hook_pooled": Activations(np.ones((n, 4)))})
    with pytest.raises(DataError, match=r"0 faces of units .* change at all"):
        clusters(dead, progress=False)
    few = write_run(tmp_path / "few", source, {"hook_pooled": Activations(np.eye(n)[:, :3])})
    assert (clusters(few, progress=False)["cluster"] >= -1).all()


def test_facets_of_one_unit_join_the_facets_of_others_that_show_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Units answer to two kinds of images each: facets group by kind, units cannot."""
    rng = np.random.default_rng(0)
    kind, units = np.arange(N) % CLASSES, np.arange(UNITS)
    first = units % CLASSES
    second = (first + 1 + units // CLASSES % (CLASSES - 1)) % CLASSES
    values = (kind[:, None] == first) | (kind[:, None] == second)
    source = PlainSource("plain", [str(i) for i in range(N)], kind, tuple("abcd"))
    shown = Activations(values + 0.1 * rng.random((N, UNITS)), signed=False)
    run = write_run(tmp_path / "run", source, {"hook_pooled": shown}, ranks=24)
    code, _, err = polysem(capsys, "clusters", run.path, "--of", "facets")
    assert code == 2
    assert "no facets to group; make them with: polysem facets" in err
    e = np.eye(CLASSES, 8)[kind] + 0.05 * rng.normal(size=(N, 8)) + 0.5
    arrays = dataset(EMBEDDINGS, {"embedding": e.astype(np.float32)}, {})
    arrays["embedding"].attrs |= {"encoder": "drawn", "fingerprint": "f"}
    add_arrays(run, "embeddings", arrays)
    _, parts = facets(run, progress=False)
    assert (parts.groupby("unit").size() == 2).mean() > 0.9
    code, _, err = polysem(capsys, "clusters", run.path, "--of", "facets")
    assert code == 0, err
    assert (run.path / "facet_clusters.png").is_file()
    table = run.table("facet_clusters")
    assert list(table.columns) == list(FACET_MEANINGS)
    pd.testing.assert_frame_equal(
        table[["site", "unit", "tail", "facet"]], parts[["site", "unit", "tail", "facet"]],
        check_dtype=False,
    )  # fmt: skip
    assert adjusted_rand_score(parts["best_image"] % CLASSES, table["cluster"]) > 0.95
    summary, quality = run.table("facet_cluster_summary"), run.table("facet_cluster_quality")
    assert list(summary.columns) == list(FACET_SUMMARY)
    assert list(quality.columns) == list(FACET_QUALITY)
    assert summary["facets"].sum() == (table["cluster"] >= 0).sum()
    assert sorted(summary["top_class"]) == list("abcd")
    assert not (run.path / "tables" / "clusters.parquet").exists()
    with pytest.raises(SpecError, match="leave out the feature"):
        clusters(run, "facets", feature="class", progress=False)
