"""Statistics of whole networks, by hand where that can be done, and two networks compared."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from studied_run import SHARES, studied_run, study_arrays

from polysem.analysis.coadaptation import COLUMNS, add_head_tables, compare_heads, network_table
from polysem.errors import RunError

N = 12


def test_the_index_by_hand(tmp_path: Path) -> None:
    """Two layers of two heads; 0 and 1 fight, 0 and 2 are redundant; each head is worth 2."""
    arrays = study_arrays(N, 2, 2)
    pairs = np.zeros((4, 4))
    pairs[0, 1], pairs[1, 0] = -3.0, -1.0  # the two directions of −2
    pairs[0, 2] = pairs[2, 0] = 1.0
    arrays["interaction"] = np.broadcast_to(pairs.reshape(2, 2, 2, 2), (N, 2, 2, 2, 2))
    arrays["cost_zero"] = arrays["cost"][:, None, None] + np.array([[2.0, -2.0], [2.0, 2.0]])
    arrays["chance_interaction"] = arrays["interaction"] / 2
    arrays["chance_cost"] = arrays["cost_zero"]
    run = studied_run(tmp_path / "run", arrays)
    value = network_table(run).set_index("statistic")["value"]
    assert value["index_within"] == pytest.approx(4 / 8, rel=1e-5)
    assert value["index_across"] == pytest.approx(2 / 8, rel=1e-5)
    assert value["index"] == pytest.approx(6 / 8, rel=1e-5)
    assert value["index_over_chance"] == pytest.approx(2, rel=1e-5)
    assert value["fight_share"] == pytest.approx(2 / 3, rel=1e-5)


def test_a_network_is_described_with_intervals(tmp_path: Path) -> None:
    arrays = study_arrays(N, 2, 3, n_pairs=9)
    arrays["drop_correct"] = np.broadcast_to(1 - np.array(SHARES), (N, 3, 9))
    run = studied_run(tmp_path / "run", arrays)
    table = add_head_tables(run)
    assert list(table.columns) == list(COLUMNS) and table["meaning"].notna().all()
    rows = table.set_index("statistic")
    value = rows["value"]
    assert value["drop_accuracy_area"] == pytest.approx(0.5)
    assert value["half_accuracy"] == pytest.approx(0.5)
    assert value["rank_correlation"] == pytest.approx(1)
    assert value["accuracy"] == pytest.approx(float(run.gates["correct"].mean()))
    spread = rows.loc[["loss", "index", "fight_share", "suppression", "divergence_within"]]
    assert (spread["low"] < spread["high"]).all()
    n = 6
    raw = run.gates["interaction"].to_numpy().reshape(N, n, n).mean(0, dtype=float)
    i, j = np.triu_indices(n, 1)
    assert value["rank_disagreement"] == pytest.approx(1 - spearmanr(raw[i, j], raw[j, i])[0])
    for name in ("heads", "head_pairs", "heads_by_class", "head_drop", "head_network"):
        assert run.table(name).attrs["columns"]


def test_one_head_a_block_has_nothing_within(tmp_path: Path) -> None:
    run = studied_run(tmp_path / "run", study_arrays(N, 3, 1, n_pairs=2))
    rows = network_table(run).set_index("statistic")
    assert rows["value"]["index_within"] == 0
    assert "cka_within" not in rows.index


def test_two_networks_compared(tmp_path: Path) -> None:
    arrays = study_arrays(N, 2, 3)
    one, same = (studied_run(tmp_path / name, arrays) for name in ("one", "same"))
    table = compare_heads(one, same).set_index("statistic")
    assert np.allclose(table["difference"], 0)
    assert table["difference_low"].isna().all()  # images are resampled together: no spread
    arrays["loss"] = arrays["loss"] + 1
    table = compare_heads(one, studied_run(tmp_path / "worse", arrays)).set_index("statistic")
    assert table["difference"]["loss"] == pytest.approx(1, rel=1e-5)
    elsewhere = studied_run(tmp_path / "elsewhere", arrays, fingerprint="1" * 64)
    table = compare_heads(one, elsewhere).set_index("statistic")
    low, high = table["difference_low"]["loss"], table["difference_high"]["loss"]
    assert low < 1 < high and high - low > 0.1  # other images


def test_networks_studied_in_different_ways_are_not_compared(tmp_path: Path) -> None:
    arrays = study_arrays(N, 2, 3)
    one = studied_run(tmp_path / "one", arrays)
    other = studied_run(tmp_path / "other", arrays, target="loss")
    with pytest.raises(RunError, match=r"target margin, .* with loss"):
        compare_heads(one, other)
