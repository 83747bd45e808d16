"""The soak at a small size: killed once, resumed, every sample where it belongs."""

import pandas as pd
import pytest

from polysem.probe.bench_soak import MEANINGS, bench_soak, growth


def test_a_short_soak_goes_through_both_sessions() -> None:
    lines: list[str] = []
    table, n_done = bench_soak(
        n_images=1500, every_s=0.02, sites="hook_pooled", report=lines.append
    )
    assert n_done == 1500
    assert list(table.columns) == list(MEANINGS)
    assert set(table["session"]) == {0, 1}
    assert "killed after" in lines[0]
    assert (table["rss_mb"] > 50).all()


def test_growth_is_that_of_warm_samples_while_images_are_read() -> None:
    table = pd.DataFrame(
        {
            "session": [0, 0, 0, 0, 1, 1, 1],
            "images": [0, 100, 300, 450, 500, 600, 1000],
            "rss_mb": [1.0, 100, 104, 102, 90, 50, 900],
        }
    )
    assert growth(table, 1000) == pytest.approx(0.04)  # start and finish do not count
    assert pd.isna(growth(table.iloc[:1], 1000))
