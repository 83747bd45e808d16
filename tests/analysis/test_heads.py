"""Tables of heads against the arrays that they are made of."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import PlainSource, random_activations, write_run
from studied_run import studied_run, study_arrays

from polysem.analysis.heads import (
    class_table,
    drop_table,
    head_table,
    pair_table,
    suppression,
    symmetric,
)  # fmt: skip
from polysem.errors import RunError
from polysem.store.run import Run

N, LAYERS, HEADS = 11, 2, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return studied_run(tmp_path_factory.mktemp("runs") / "run", study_arrays(N, LAYERS, HEADS))


def test_one_row_a_head(run: Run) -> None:
    table, meanings = head_table(run)
    assert list(table.columns) == list(meanings)
    assert table[["layer", "head"]].to_numpy().tolist() == [
        [i, j] for i in range(LAYERS) for j in range(HEADS)
    ]
    gates = run.gates
    for way in ("zero", "mean", "resample"):
        gain = (gates[f"cost_{way}"] - gates["cost"]).mean("image").to_numpy().ravel()
        np.testing.assert_allclose(table[f"importance_{way}"], gain, rtol=1e-4, atol=1e-6)
        assert (table[f"importance_{way}_low"] < gain).all()
        assert (table[f"importance_{way}_high"] > gain).all()
    pairs = symmetric(gates).mean(0)
    np.testing.assert_allclose(table["rival_interaction"], pairs.min(1))
    number = table["double_layer"] * HEADS + table["double_head"]
    expected = np.where(pairs.max(1) > 0, pairs.argmax(1), -HEADS - 1)  # -1, -1 if there is none
    np.testing.assert_array_equal(number, expected)


def test_one_row_a_pair(run: Run) -> None:
    table, meanings = pair_table(run)
    assert list(table.columns) == list(meanings)
    n = LAYERS * HEADS
    assert len(table) == n * (n - 1) // 2
    first, second = (table[f"layer{end}"] * HEADS + table[f"head{end}"] for end in ("", "_2"))
    assert (first < second).all()
    raw = run.gates["interaction"].to_numpy().reshape(N, n, n).mean(0, dtype=float)
    expected = (raw + raw.T)[first, second] / 2
    np.testing.assert_allclose(table["interaction"], expected, rtol=1e-5, atol=1e-6)
    apart = abs(raw - raw.T)[first, second]
    np.testing.assert_allclose(table["disagreement"], apart, rtol=1e-4, atol=1e-6)
    exact = table.dropna(subset="exact")
    chosen = zip(first[exact.index], second[exact.index], strict=True)
    ends = (run.gates[f"pair_{which}"].to_numpy().tolist() for which in ("first", "second"))
    wanted = zip(*ends, strict=True)
    assert sorted(chosen) == sorted(wanted)
    np.testing.assert_allclose(exact["exact"], exact["interaction"], rtol=1e-4, atol=1e-6)


def test_classes_add_up_to_all_images(run: Run) -> None:
    table, meanings = class_table(run)
    assert list(table.columns) == list(meanings)
    assert sorted(set(table["class"])) == [0, 1]
    weighted = table["importance_zero"] * table["images"]
    total = weighted.groupby([table["layer"], table["head"]]).sum()
    whole = head_table(run)[0]["importance_zero"]
    np.testing.assert_allclose(total / N, whole, rtol=1e-5, atol=1e-7)


def test_the_drop_curve_is_the_mean_over_draws(run: Run) -> None:
    table, meanings = drop_table(run)
    assert list(table.columns) == list(meanings)
    expected = run.gates["drop_correct"].mean(("image", "draw"))
    np.testing.assert_allclose(table["accuracy"], expected, rtol=1e-5)


def test_suppression_by_hand() -> None:
    found = suppression(np.array([[3.0, -1.0, 0.5], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert found[0, 0, 1] == pytest.approx(1 / 4.5)
    assert found[0, 1, 2] == pytest.approx(0.5 / 4.5)
    assert found[0, 0, 2] == 0 and found[1].sum() == 0 and found[2].sum() == 0
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))


def test_without_attribution_or_pairs(tmp_path: Path) -> None:
    arrays = study_arrays(N, LAYERS, HEADS)
    for name in ("logit_share", "opposition", "exact", "shapley", "pair_first", "pair_second"):
        del arrays[name]
    run = studied_run(tmp_path / "run", arrays)
    assert "suppression" not in head_table(run)[0] and "exact" not in pair_table(run)[0]


def test_a_run_without_a_study_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PlainSource("photos", ["a", "b"]), random_activations(2))
    with pytest.raises(RunError, match="no study of heads; `polysem heads` makes one"):
        head_table(run)
