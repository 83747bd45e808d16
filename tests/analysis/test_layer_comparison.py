"""Two runs side by side: planted differences are found, and what cannot be compared is refused."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import Activations, PlainSource, write_run

from polysem.analysis.layer_comparison import MEANINGS, cliffs_delta, compare_layers
from polysem.analysis.polysemanticity import polysemanticity
from polysem.errors import DataError, SpecError
from polysem.store.run import Run


def scored(folder: Path, *, sparse: bool, fingerprint: str = "a" * 64) -> Run:
    rng = np.random.default_rng(int(sparse))
    values = rng.gamma(0.2 if sparse else 3, size=(60, 25))
    values[:, 3] = 1  # dead
    labels = np.arange(60) % 3
    keys = [str(i) for i in range(60)]
    source = PlainSource("plain", keys, labels, ("a", "b", "c"), fingerprint)
    run = write_run(folder, source, {"hook_pooled": Activations(values, signed=False)})
    polysemanticity(run, progress=False)
    return run


def test_a_difference_is_found_with_its_sign(tmp_path: Path) -> None:
    first, second = scored(tmp_path / "a", sparse=True), scored(tmp_path / "b", sparse=False)
    table = compare_layers(first, second)
    assert list(table.columns) == list(MEANINGS)
    row = table.set_index("score").loc["hoyer"]
    assert row["first"] > row["second"]
    assert row["difference_low"] > 0
    assert row["cliffs_delta"] > 0.9
    assert (row["first_faces"], row["second_faces"]) == (24, 24)
    assert row["first"] == np.median(first.table("polysemanticity")["hoyer"].dropna())
    assert "ms" not in set(table["score"])  # neither has embeddings
    alike = compare_layers(first, first).set_index("score").loc["hoyer"]
    assert alike["difference"] == alike["cliffs_delta"] == 0


def test_cliffs_delta_at_its_ends() -> None:
    assert cliffs_delta([3, 4], [1, 2]) == 1
    assert cliffs_delta([1, 2], [3, 4]) == -1
    assert np.isnan(cliffs_delta([], [1]))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = scored(tmp_path / "a", sparse=True)
    other = scored(tmp_path / "b", sparse=True, fingerprint="b" * 64)
    with pytest.raises(DataError, match="were probed on different images"):
        compare_layers(first, other)
    (other.path / "tables" / "polysemanticity.parquet").unlink()
    with pytest.raises(SpecError, match="no table 'polysemanticity'"):
        compare_layers(first, other)
