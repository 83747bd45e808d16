"""The bench's table at a small size; nothing is timed."""

import numpy as np

from polysem.probe.bench_monosemanticity import MEANINGS, bench_monosemanticity


def test_every_line_has_what_its_columns_promise() -> None:
    lines: list[str] = []
    table = bench_monosemanticity(
        n_images=(60, 20), n_units=3, dim=5, exact_up_to=20, report=lines.append
    )
    assert list(table.columns) == list(MEANINGS)
    assert len(lines) == len(table) == 2
    assert table["difference"][1] < 1e-12
    assert np.isnan(table["difference"][0])
    assert table["pairs_timed"][1] == 1
    assert 0.05 < table["pairs_timed"][0] < 0.2
