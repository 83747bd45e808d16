"""Arms of runs compared: planted differences are found, and what cannot be compared is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from drawn_run import Activations, PlainSource, write_run
from studied_run import studied_run, study_arrays

import polysem
from polysem.analysis.arms import arms_of, what_to_know
from polysem.analysis.coadaptation import add_head_tables, compare_heads
from polysem.analysis.comparison import MEANINGS, compare_runs
from polysem.analysis.effects import cliffs_delta
from polysem.analysis.measures import COMPARED, LEFT_OUT
from polysem.analysis.polysemanticity import polysemanticity
from polysem.errors import DataError, RunError, SpecError
from polysem.store.additions import add_table
from polysem.store.run import Run

N = 60


def scored(
    folder: Path,
    *,
    shape: float = 1.0,
    seed: int = 0,
    fingerprint: str = "a" * 64,
    sites: tuple[str, ...] = ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "hook_pooled"),
    right: float = 0.5,
) -> Run:
    """Write a run whose units fire the more sparsely the smaller `shape` is."""
    rng = np.random.default_rng(seed)
    shown = {}
    for site in sites:
        values = rng.gamma(shape * np.exp(0.05 * rng.normal()), size=(N, 25))
        values[:, 3] = 1  # dead
        shown[site] = Activations(values, signed=False)
    labels = np.arange(N) % 3
    predictions = np.where(rng.random(N) < right, labels, (labels + 1) % 3)
    source = PlainSource("plain", [str(i) for i in range(N)], labels, ("a", "b", "c"), fingerprint)
    run = write_run(folder, source, shown, predictions=predictions, sha256=f"{seed:064d}")
    polysemanticity(run, progress=False)
    return run


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Run]]:
    """Two arms of four seeds, the first sparse."""
    folder = tmp_path_factory.mktemp("arms")
    return {
        "sparse": [scored(folder / f"s{k}", shape=0.2, seed=k) for k in range(4)],
        "dense": [scored(folder / f"d{k}", shape=3, seed=10 + k) for k in range(4)],
    }


def test_arms_of_seeds_speak_of_training(arms: dict[str, list[Run]]) -> None:
    found = compare_runs(arms, progress=False)
    assert list(found.table.columns) == list(MEANINGS)
    assert found.table.attrs["columns"] == MEANINGS
    rows = found.table.set_index(["table", "measure", "site"]).sort_index()
    row = rows.loc["polysemanticity", "hoyer", "blocks.*.mlp.hook_post"]
    assert row["difference_low"] > 0 and row["delta"] > 0.9
    assert row["p"] == row["least_p"] == pytest.approx(2 / 70)
    assert (row["about"], row["resampled"]) == ("training", "seed, layer, unit")
    assert (row["runs"], row["layers"], row["units"], row["exchanged"]) == (
        4, 2, 4 * 2 * 24, "networks"
    )  # fmt: skip
    pooled = rows.loc["polysemanticity", "hoyer", "hook_pooled"]
    assert (pooled["resampled"], pooled["layers"]) == ("seed, unit", 1)
    accuracy = rows.loc["images", "accuracy", ""]
    means = [[run.images["correct"].mean() for run in runs] for runs in arms.values()]
    welch = scipy.stats.ttest_ind(*means, equal_var=False).confidence_interval()
    ends = accuracy["difference_low"], accuracy["difference_high"]
    assert ends == pytest.approx((welch.low, welch.high))
    assert (accuracy["resampled"], accuracy["summary"]) == ("seed", "mean")
    assert rows.loc["units", "dead", "hook_pooled"]["value"] == pytest.approx(1 / 25)
    assert not found.notes


def test_the_numbers_are_those_of_the_tables(arms: dict[str, list[Run]]) -> None:
    found = compare_runs(arms, tables=["polysemanticity"], progress=False)
    row = found.layers.set_index(["measure", "site"]).loc["gini", "blocks.1.mlp.hook_post"]
    values = [
        [
            t.loc[(t["site"] == "blocks.1.mlp.hook_post") & ~t["dead"], "gini"].to_numpy()
            for t in (run.table("polysemanticity") for run in runs)
        ]
        for runs in arms.values()
    ]
    medians = [[np.median(one) for one in arm] for arm in values]
    assert row["value"] == pytest.approx(np.mean(medians[0]), rel=1e-6)
    assert row["difference"] == pytest.approx(np.mean(medians[0]) - np.mean(medians[1]), rel=1e-6)
    deltas = [cliffs_delta(a, b) for a in values[0] for b in values[1]]
    assert row["delta"] == pytest.approx(np.mean(deltas), abs=1e-3)
    assert row["units"] == 4 * 24
    known = found.table["p"].notna()
    q = scipy.stats.false_discovery_control(found.table.loc[known, "p"])
    assert found.table.loc[known, "q"].to_numpy() == pytest.approx(q)


def test_turning_the_arms_turns_the_signs(arms: dict[str, list[Run]]) -> None:
    some = {"tables": ["polysemanticity", "images"], "progress": False}
    one = compare_runs(arms, **some).table  # type: ignore[arg-type]
    other = compare_runs(dict(reversed(arms.items())), **some).table  # type: ignore[arg-type]
    for name in ("difference", "delta"):
        assert np.allclose(one[name], -other[name], equal_nan=True)
        assert np.allclose(one[f"{name}_low"], -other[f"{name}_high"], equal_nan=True)
    assert np.allclose(one["p"], other["p"])


def test_one_seed_is_one_network(arms: dict[str, list[Run]]) -> None:
    found = compare_runs([arms["sparse"][0], arms["dense"][0]], progress=False)
    assert "s0" in found.arms and "say nothing of other seeds" in found.notes[0]
    rows = found.table.set_index(["table", "measure", "site"]).sort_index()
    row = rows.loc["polysemanticity", "hoyer", "blocks.*.mlp.hook_post"]
    assert (row["about"], row["resampled"], row["exchanged"]) == (
        "these networks", "layer, unit", "units within layers"
    )  # fmt: skip
    assert row["p"] == row["least_p"] == 1 / 2000
    assert row["delta_low"] > 0.5 or np.isnan(row["delta_low"])
    accuracy = rows.loc["images", "accuracy", ""]
    assert (accuracy["resampled"], accuracy["exchanged"], accuracy["units"]) == (
        "image", "images", N
    )  # fmt: skip
    assert accuracy["difference_low"] < accuracy["difference"] < accuracy["difference_high"]


def test_names_of_other_words_do_not_compare(arms: dict[str, list[Run]], tmp_path: Path) -> None:
    runs = []
    for arm, words in (("sparse", "shapes"), ("dense", "common")):
        run = Run.open(shutil.copytree(arms[arm][0].path, tmp_path / arm))
        made_by = {"clip": "ViT-B-32:openai", "vocabulary": words}
        add_table(
            run, "labels", pd.DataFrame({"unit": [0]}), meanings={"unit": "-"}, made_by=made_by
        )
        runs.append(run)
    notes = what_to_know(arms_of(runs), ["labels"])
    assert "units were named with different vocabulary, on which names depend" in notes
    assert not any("different clip" in note for note in notes)


def test_an_arm_against_many_is_not_about_training(arms: dict[str, list[Run]]) -> None:
    mixed = {"one": arms["sparse"][:1], "many": arms["dense"]}
    found = compare_runs(mixed, tables=["polysemanticity", "images"], progress=False)
    assert set(found.table["about"]) == {"these networks"}
    assert found.notes == [
        "arm has a single seed: one. Differences from it are between these networks, over layers "
        "and units, and say nothing of other seeds; p too"
    ]


def test_a_run_beside_itself_does_not_differ(arms: dict[str, list[Run]]) -> None:
    run = arms["sparse"][0]
    found = compare_runs({"a": [run], "b": [run]}, progress=False)
    assert (found.table["difference"].fillna(0) == 0).all()
    assert (found.table["delta"].fillna(0) == 0).all()
    assert (found.table["p"].dropna() == 1).all()
    assert any("runs of the same network" in note for note in found.notes)


def test_three_arms_are_three_pairs(arms: dict[str, list[Run]]) -> None:
    runs = [arms["sparse"][0], arms["sparse"][1], arms["dense"][0]]
    found = compare_runs(runs, tables=["images"], progress=False)
    pairs = found.table[["arm", "other"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["s0", "s1"], ["s0", "d0"], ["s1", "d0"]]
    assert found.layers.empty and list(found.layers.columns) == list(MEANINGS)


def test_few_seeds_are_said_to_be_few(arms: dict[str, list[Run]]) -> None:
    few = {name: runs[:3] for name, runs in arms.items()}
    found = compare_runs(few, tables=["images"], progress=False)
    assert any("3 and 3 seeds can give no p below 0.1" in note for note in found.notes)


def test_heads_are_compared_over_images(tmp_path: Path) -> None:
    runs = []
    for k in range(2):
        runs.append(studied_run(tmp_path / f"r{k}", study_arrays(12, 2, 3, n_pairs=9, seed=k)))
        add_head_tables(runs[-1])
    rows = compare_runs(runs, progress=False).table.set_index(["table", "measure"])
    table = compare_heads(runs[1], runs[0]).set_index("statistic")
    row = rows.loc["head_network", "fight_share"]
    columns = ["difference", "difference_low", "difference_high"]
    assert row[columns].tolist() == pytest.approx(table.loc["fight_share", columns].tolist())
    assert np.isnan(row["p"]) and row["resampled"] == "image"
    heads = rows.loc["heads", "importance_zero"]
    assert (heads["site"], heads["units"], heads["layers"]) == ("blocks.*.attn.hook_z", 6, 2)


def test_what_only_some_have_is_left_out_and_said(arms: dict[str, list[Run]]) -> None:
    run = arms["sparse"][2]
    file = run.path / "tables" / "polysemanticity.parquet"
    kept = file.read_bytes()
    file.unlink()
    add_table(run, "own", pd.DataFrame({"a": [1]}), meanings={"a": "anything"})
    try:
        found = compare_runs([run, arms["dense"][0]], progress=False)
        assert set(found.table["table"]) == {"images", "units"}
        assert any(note.startswith("polysemanticity is left out: not in") for note in found.notes)
        with pytest.raises(SpecError, match="no table 'polysemanticity'"):
            compare_runs([run, arms["dense"][0]], tables=["polysemanticity"])
    finally:
        file.write_bytes(kept)
        (run.path / "tables" / "own.parquet").unlink()


def test_every_table_is_compared_or_left_out_for_a_reason() -> None:
    code = "".join(
        file.read_text(encoding="utf-8") for file in Path(polysem.__file__).parent.rglob("*.py")
    )
    written = set(re.findall(r'(?:add_table|write_table)\([\w.]+, "(\w+)"', code))
    assert {"polysemanticity", "unit_facets", "superposition"} <= written
    assert written <= set(COMPARED) | set(LEFT_OUT)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, arms: dict[str, list[Run]]) -> None:
    one, two = arms["sparse"][:2]
    with pytest.raises(SpecError, match="one arm is named"):
        compare_runs([one])
    with pytest.raises(SpecError, match="arm 'b' has no run"):
        compare_runs({"a": [one], "b": []})
    with pytest.raises(DataError, match="runs of the same network, and not two seeds of arm 'a'"):
        compare_runs({"a": [one, one], "b": [two]})
    with pytest.raises(SpecError, match="did you mean 'unit_facets'"):
        compare_runs([one, two], tables=["unit_facet"])
    other = scored(tmp_path / "else" / "s0", seed=5, fingerprint="b" * 64)
    with pytest.raises(SpecError, match="two arms are called 's0'"):
        compare_runs([one, other])
    with pytest.raises(DataError, match=r"different images \(60 of plain and 60 of plain\)"):
        compare_runs({"a": [one], "b": [other]})
    sites = ("blocks.0.mlp.hook_post", "hook_pooled")
    fewer = scored(tmp_path / "fewer", seed=6, sites=sites)
    with pytest.raises(DataError, match=r"was probed at blocks.1.mlp.hook_post and .*fewer was"):
        compare_runs([fewer, one])
    found = compare_runs([fewer, one], sites="blocks.0.*,hook_pooled", progress=False)
    assert set(found.layers["site"]) == {*sites}


def test_heads_studied_differently_are_refused(tmp_path: Path) -> None:
    runs = [
        studied_run(tmp_path / target, study_arrays(6, 1, 2, n_pairs=1), target=target)
        for target in ("loss", "margin")
    ]
    with pytest.raises(RunError, match=r"studied with target loss, those of .* with margin"):
        compare_runs(runs)


def test_recipes_that_differ_are_no_seeds(tmp_path: Path) -> None:
    runs = [scored(tmp_path / str(k), seed=k) for k in range(3)]
    for k, run in enumerate(runs[:2]):
        run.manifest["model"]["info"] = {"recipe": {"seed": k, "loss": ["auto", "bce"][k]}}
        (run.path / "manifest.json").write_text(json.dumps(run.manifest))
    found = compare_runs({"a": runs[:2], "b": runs[2:]}, tables=["images"], progress=False)
    assert "runs of a differ in loss, and are not seeds of one recipe" in found.notes
