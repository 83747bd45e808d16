"""Slopes of known powers, and the picture of them."""

import pandas as pd
import pytest

from polysem.report.scaling import scaling_figure, slopes


def known() -> pd.DataFrame:
    rows = [
        {
            "axis": axis,
            axis: x,
            "cpu_s": 3 * x**0.5,
            "state_mb": 2.0,
            "finish_s": x,
            "peak_mb": 7 / x,
        }
        for axis in ("images", "units", "top_k", "processes")
        for x in (1, 2, 8)
    ]
    return pd.DataFrame(rows)


def test_slopes_are_the_powers() -> None:
    found = slopes(known()).set_index(["axis", "cost"])["slope"]
    assert found["images", "cpu_s"] == pytest.approx(0.5)
    assert found["units", "state_mb"] == pytest.approx(0)
    assert found["top_k", "finish_s"] == pytest.approx(1)
    assert found["processes", "peak_mb"] == pytest.approx(-1)


def test_every_panel_shows_its_points_and_fits() -> None:
    figure = scaling_figure(known())
    panels = [axes for axes in figure.axes if axes.get_xscale() == "log"]
    assert [len(axes.lines) for axes in panels] == [4, 6, 6, 4]
    assert "slope 0.50" in panels[0].get_legend().get_texts()[0].get_text()
    assert len(scaling_figure(known()[lambda t: t["axis"] == "units"]).axes) < len(figure.axes)
