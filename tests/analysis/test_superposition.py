"""Superposition: known participation ratios, and the table of a run."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import Activations, PlainSource, write_run

from polysem.analysis.superposition import MEANINGS, participation_ratio, superposition


def test_participation_ratio_of_known_spectra() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200, 1)) @ rng.normal(size=(1, 9)) + 5
    assert participation_ratio(one) == pytest.approx(1)
    whitened = np.linalg.qr(rng.normal(size=(50, 9)) - 0)[0]
    whitened -= whitened.mean(0)
    values = np.linalg.eigvalsh(np.cov(whitened.T))
    assert participation_ratio(whitened) == pytest.approx(values.sum() ** 2 / (values**2).sum())
    wide = rng.normal(size=(8, 300))  # more units than images: another route, the same number
    values = np.linalg.eigvalsh(np.cov(wide.T))
    assert participation_ratio(wide) == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert np.isnan(participation_ratio(np.ones((5, 3))))


def test_table_of_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(30, 6))
    values[:, 2] = 1  # dead
    run = write_run(
        tmp_path / "run",
        PlainSource("plain", [str(i) for i in range(30)]),
        {"hook_pooled": Activations(values)},
    )
    table = superposition(run)
    assert list(table.columns) == list(MEANINGS)
    row = table.iloc[0]
    assert (row["units"], row["images"]) == (5, 30)
    exact = participation_ratio(values[:, [0, 1, 3, 4, 5]].astype(np.float32))
    assert row["participation_ratio"] == pytest.approx(exact)
    assert row["participation_share"] == pytest.approx(exact / 5)
    assert np.isnan(row["weight_cosine"])
    assert run.table("superposition").attrs["columns"] == MEANINGS
