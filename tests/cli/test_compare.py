"""``polysem compare`` and its bench, as from a shell."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_run import PlainSource, random_activations, write_run
from shell import polysem
from studied_run import studied_run, study_arrays

from polysem.analysis.coadaptation import add_head_tables
from polysem.cli.bench.compare_worlds import COLUMNS, WORLDS, World, simulate

FILES = {
    "comparison.parquet", "comparison.csv", "layers.parquet", "layers.csv", "forest.png",
    "comparison.md", "comparison.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs a0, a1, b0 and b1."""
    folder, n = tmp_path_factory.mktemp("runs"), 24
    source = PlainSource("plain", [str(i) for i in range(n)])
    for k, name in enumerate(("a0", "a1", "b0", "b1")):
        write_run(folder / name, source, random_activations(n, seed=k), sha256=f"{k:064d}")
    return folder


def test_arms_are_compared_and_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("compare", runs / "a0", "--group", f"<b>={runs}/b*", "--out", out)
    code, printed, _ = polysem(capsys, *words)
    assert code == 0
    assert "note: arm has a single seed: a0" in printed
    assert "kurtosis" in printed
    assert {file.name for file in out.iterdir()} == FILES
    table = pd.read_parquet(out / "comparison.parquet")
    assert set(table["arm"]) == {"a0"} and set(table["other_runs"]) == {2}
    assert table.attrs["columns"]["delta"].startswith("Cliff's delta")
    said = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert [Path(run["path"]).name for run in said["arms"]["<b>"]] == ["b0", "b1"]
    page = (out / "comparison.md").read_text(encoding="utf-8")
    assert page.startswith("# a0 against &lt;b&gt;\n")
    assert "![Effects with their intervals](forest.png)" in page
    assert "| units | kurtosis |" in page
    code, _, err = polysem(capsys, *words)
    assert code == 2 and "already holds results" in err
    code, _, _ = polysem(capsys, *words, "--overwrite")
    assert code == 0


def test_studied_heads_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, name in enumerate(("plain", "drophead")):
        add_head_tables(studied_run(tmp_path / name, study_arrays(8, 1, 3, n_pairs=3, seed=k)))
    out = tmp_path / "out"
    words = ("compare", tmp_path / "plain", tmp_path / "drophead", "--out", out)
    code, printed, _ = polysem(capsys, *words)
    assert code == 0 and "fight_share" in printed
    assert {file.name for file in out.iterdir()} == FILES | {"dropped.png"}
    page = (out / "comparison.md").read_text(encoding="utf-8")
    assert "![Accuracy and loss as heads are dropped at random](dropped.png)" in page


def test_groups_named_by_commas_are_arms_of_several(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [f"{arm}={runs / arm}0,{runs / arm}1" for arm in "ab"]
    code, printed, _ = polysem(capsys, "compare", "--group", groups[0], "--group", groups[1])
    assert code == 0
    assert "2 and 2 seeds can give no p below 0.333" in printed
    assert "name a folder with --out" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "nothing is named"),
        (("RUNS/a0",), "one arm is named"),
        (("RUNS/a0", "RUNS/a9"), "no run folder at"),
        (("RUNS/a0", "RUNS/a0"), "two arms are called 'a0'"),
        (("RUNS/a0", "--group", "b"), "--group b has to be NAME=RUN,RUN"),
        (("RUNS/a0", "--group", "b=RUNS/c*"), "no run folder matches"),
        (("--group", "x=RUNS/a0,RUNS/a0", "RUNS/b0"), "not two seeds of arm 'x'"),
        (("RUNS/a0", "RUNS/b0", "--sites", "blocks.9.*"), "matches 'blocks.9.*'"),
        (("RUNS/a0", "RUNS/b0", "--tables", "unit"), "did you mean 'units'"),
        (("RUNS/a0", "RUNS/b0", "--tables", "heads"), "no table 'heads'"),
        (("RUNS/a0", "RUNS/b0", "--out", "RUNS"), "holds something else"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    words: tuple[str, ...], sentence: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("RUNS", str(runs)) for word in words]
    code, _, err = polysem(capsys, "compare", *given)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert len(list(runs.iterdir())) == 4


def test_the_bench_finds_the_size_and_the_power() -> None:
    """300 simulations of three worlds; the whole bench is `polysem bench compare`."""
    worlds = (
        World("alike", 5, 5, layers=2, units=15),
        World("differ", 5, 5, layers=2, units=15, difference=1.2),
        World("networks", 1, 1, layers=2, units=15, seed=0, seed_layer=0),
    )
    table = simulate(worlds, simulations=300, seed=1)
    assert tuple(table.columns) == COLUMNS
    alike, differ, networks = table.to_dict("records")
    for row in (alike, networks):
        assert row["effect"] == 0
        assert 0.02 <= row["rejection_rate"] <= 0.085
        assert row["coverage_delta"] >= 0.9
        assert row["coverage_difference"] >= 0.9
    assert alike["attainable"] == pytest.approx(12 / 252)
    assert differ["rejection_rate"] > 0.9
    assert differ["coverage_delta"] >= 0.9
    assert (alike["about"], networks["about"]) == ("training", "these networks")


def test_worlds_state_what_their_sizes_allow() -> None:
    few = [world for world in WORLDS if (world.runs, world.other_runs) == (3, 3)]
    assert few and all(world.attainable == 0 for world in few)
    rng = np.random.default_rng(0)
    world = World("", 1, 1, difference=0.5, seed=0, seed_layer=0, units=4000)
    measure = world.draw(rng)
    assert measure.cells is not None
    a, b = (cells[0].values for cells in measure.cells)
    assert np.sign(a[:, None] - b).mean() == pytest.approx(world.delta, abs=0.04)
