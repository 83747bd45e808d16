"""Series with known answers: identical snapshots, permuted and perturbed ones, planted births."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import Activations, PlainSource, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polysem.analysis.evolution import Tables, evolution_tables
from polysem.analysis.polysemanticity import polysemanticity
from polysem.analysis.snapshot_labels import label_source, snapshot_labels
from polysem.analysis.trajectories import BIRTHS, LAYERS, TRAJECTORIES
from polysem.errors import DataError
from polysem.store.run import Run

N, UNITS = 600, 9
MLP, POOLED = "blocks.0.mlp.hook_post", "hook_pooled"
CLASSES = ("cat", "dog", "owl")
SOURCE = PlainSource("drawn", [str(i) for i in range(N)], np.arange(N) % 3, CLASSES)


def series(folder: Path, snapshots: list[dict[str, Activations]]) -> dict[int, Run]:
    """Write runs of given activations as snapshots of steps 0, 10, 20 …, scored."""
    runs = {}
    for i, shown in enumerate(snapshots):
        runs[10 * i] = write_run(
            folder / f"step_{10 * i}", SOURCE, shown, pooled=True, overwrite=True
        )
        polysemanticity(runs[10 * i], progress=False)
    return runs


def values(seed: int = 0, units: int = UNITS) -> np.ndarray:
    """Activations of units, of which unit u prefers class u % 3."""
    rng = np.random.default_rng(seed)
    prefers = np.arange(N)[:, None] % 3 == np.arange(units) % 3
    return np.asarray(rng.normal(size=(N, units)) + 2.0 * prefers)


def tables(runs: dict[int, Run], **options: object) -> Tables:
    return evolution_tables(runs, labels="classes", progress=False, **options)  # type: ignore[arg-type]


def test_identical_snapshots_have_correlation_1_and_no_churn(tmp_path: Path) -> None:
    maps = np.random.default_rng(1).normal(size=(N, 4, 2, 2))
    shown = {MLP: Activations(maps), POOLED: Activations(values())}
    found = tables(series(tmp_path, [shown, shown, shown]))
    paths, born, layers = found.trajectories, found.births, found.layers
    assert list(paths.columns) == list(TRAJECTORIES) and paths.attrs["columns"] == TRAJECTORIES
    assert list(born.columns) == list(BIRTHS) and list(layers.columns) == list(LAYERS)
    assert len(paths) == 3 * 2 * (4 + UNITS) and len(born) == 2 * (4 + UNITS)
    assert np.abs(paths["correlation"] - 1).max() < 1e-5
    assert np.abs(paths["matched_correlation"] - 1).max() < 1e-5
    assert (paths["matched_unit"] == paths["unit"]).all()
    assert (born["label_changes"] == 0).all() and (born["label_churn"] == 0).all()
    assert (born["birth_correlation"] == 0).all()
    assert (born["birth_label"].dropna() == 0).all()
    assert np.abs(layers["cka_final"] - 1).max() < 1e-5
    later = layers[layers["step"] > 0]
    assert np.abs(later["cka_previous"] - 1).max() < 1e-5
    assert (later["index_churn"] == 0).all() and (later["label_churn"] == 0).all()
    assert (
        layers.loc[layers["step"] == 0, ["cka_previous", "index_churn", "label_churn"]]
        .isna()
        .all(axis=None)
    )
    assert (layers["kept_index"] == 1).all() and (layers["born_correlation"] == 1).all()


@given(st.permutations(range(UNITS)), st.floats(0.0, 0.5), st.integers(0, 50))
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_permuted_and_perturbed_snapshots_are_matched_back(
    tmp_path: Path, order: list[int], noise: float, seed: int
) -> None:
    final = values(seed)
    perturbed = final + noise * final.std(0) * np.random.default_rng(seed + 1).normal(
        size=(N, UNITS)
    )
    earlier = perturbed[:, order]  # unit j of the earlier network is unit order[j] of the final one
    runs = series(tmp_path, [{POOLED: Activations(a)} for a in (earlier, final)])
    both = tables(runs, follow="match")
    found = both.trajectories
    first = found[(found["step"] == 0) & (found["tail"] == "upper")].set_index("unit")
    assert [order[j] for j in first["matched_unit"]] == list(range(UNITS))
    assert (first["followed_unit"] == first["matched_unit"]).all()
    # noise of share s of a unit's deviation leaves a correlation of 1 / √(1 + s²)
    expected = 1 / np.sqrt(1 + noise**2)
    assert first["matched_correlation"].to_numpy() == pytest.approx(expected, abs=0.05)
    own = np.array([np.corrcoef(earlier[:, u], final[:, u])[0, 1] for u in range(UNITS)])
    assert first["correlation"].to_numpy() == pytest.approx(own, abs=1e-4)
    layer = both.layers.iloc[0]
    assert layer["kept_index"] == pytest.approx(np.mean(np.array(order) == np.arange(UNITS)))


def test_followed_by_index_or_by_match(tmp_path: Path) -> None:
    final = values()
    order = np.roll(np.arange(UNITS), 1)  # each index belongs to a unit of another class before
    runs = series(tmp_path, [{POOLED: Activations(a)} for a in (final[:, order], final)])
    by_index, by_match = (tables(runs, follow=f) for f in ("index", "match"))
    upper = by_index.births["tail"] == "upper"
    assert (by_match.births.loc[upper, "label_changes"] == 0).all()
    assert (by_match.births.loc[upper, "birth_label"] == 0).all()
    assert (by_match.births.loc[upper, "birth_correlation"] == 0).all()
    assert (by_index.births.loc[upper, "label_changes"] == 1).all()
    assert (by_index.births.loc[upper, "birth_label"] == 10).all()
    assert (by_index.births.loc[upper, "birth_correlation"] == 10).all()
    layers = by_match.layers.set_index("step")
    assert layers.loc[0, "cka_final"] == pytest.approx(1, abs=1e-5)  # a permutation is a rotation
    assert layers.loc[10, "index_churn"] == 1 and layers.loc[0, "kept_index"] == 0
    scores = by_match.trajectories.set_index(["tail", "unit", "step"])["selectivity"].unstack()
    assert scores[0].to_numpy() == pytest.approx(scores[10].to_numpy())


def test_births_are_where_they_were_planted(tmp_path: Path) -> None:
    final = values(0)
    other = np.random.default_rng(9).normal(size=(3, N, UNITS))
    born = np.arange(UNITS) % 4  # unit u is its final self from snapshot u % 4 on
    shown = [np.where(born <= s, final, other[min(s, 2)]) for s in range(4)]
    found = tables(series(tmp_path, [{POOLED: Activations(a)} for a in shown])).births
    upper = found[found["tail"] == "upper"]
    assert upper["birth_correlation"].tolist() == (10 * born).tolist()
    assert upper["birth_label"].tolist() == (10 * born).tolist()
    assert upper["final_label"].tolist() == [CLASSES[u % 3] for u in range(UNITS)]


def test_a_dead_unit_is_missing_not_zero(tmp_path: Path) -> None:
    earlier = values()
    earlier[:, 2] = 1.5
    runs = series(tmp_path, [{POOLED: Activations(a)} for a in (earlier, values())])
    found = tables(runs, follow="match").trajectories
    row = found[(found["unit"] == 2) & (found["step"] == 0)]
    assert row["matched_unit"].isna().all() and row["dead"].all()
    assert row[["correlation", "matched_correlation", "selectivity"]].isna().all(axis=None)
    assert row["label"].isna().all()
    assert tables(runs).layers.set_index("step")["living"].tolist() == [UNITS - 1, UNITS]


def test_classes_need_more_than_chance(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(N, 400))
    noise[:, 0] += 3 * (np.arange(N) % 3 == 1)
    run = series(tmp_path, [{POOLED: Activations(noise, signed=False)}])[0]
    labels = snapshot_labels(run, "classes")
    assert label_source([run]) == "classes"
    assert labels[POOLED, 0, "upper"] == "dog"
    assert labels.iloc[1:].notna().mean() == pytest.approx(0.05, abs=0.025)
    assert label_source([write_run(tmp_path / "b", PlainSource("b", ["a", "b"]), {
        POOLED: Activations(np.eye(2))})]) is None  # fmt: skip


def test_runs_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    shown = {POOLED: Activations(values())}
    runs = series(tmp_path, [shown, shown])
    with pytest.raises(DataError, match="two snapshots or more"):
        evolution_tables({0: runs[0]}, labels=None)
    other = PlainSource("other", SOURCE.keys, SOURCE.labels, CLASSES, fingerprint="1" * 64)
    fewer = {POOLED: Activations(values(units=5))}
    for run, reason in (
        (write_run(tmp_path / "a", other, shown, pooled=True), "different images"),
        (write_run(tmp_path / "b", SOURCE, fewer, pooled=True), "different sites or units"),
        (write_run(tmp_path / "c", SOURCE, shown), "probe it with --pooled"),
        (
            write_run(tmp_path / "d", SOURCE, {POOLED: Activations(values()[:-1])}, skipped=[N - 1],
                      pooled=True),
            "left out different images",
        ),
    ):  # fmt: skip
        with pytest.raises(DataError, match=reason):
            evolution_tables({0: runs[0], 1: run}, labels=None)
