"""Forest plots and pages of comparisons: every effect has its mark, and text is shown as it is."""

import numpy as np
import pandas as pd

from polysem.report.comparison_page import short_table
from polysem.report.forest import forest
from polysem.report.markdown import markdown_table


def compared(pairs: tuple[tuple[str, str], ...] = (("a", "b"),)) -> pd.DataFrame:
    """Two measures of units at two kinds of sites, and one of networks."""
    rows = []
    for arm, other in pairs:
        names = {"arm": arm, "other": other, "runs": 1, "other_runs": 2}
        for site in ("blocks.*.mlp.hook_post", "hook_pooled", ""):
            for measure in ("kurtosis", "hoyer"):
                units = site != ""
                rows.append(
                    names
                    | {
                        "table": "polysemanticity" if units else "head_network",
                        "measure": measure, "site": site, "value": 2.0, "other_value": 1.5,
                        "difference": 0.5, "difference_low": 0.1, "difference_high": 0.9,
                        "delta": 0.4 if units else np.nan,
                        "delta_low": -0.1 if measure == "hoyer" else 0.2, "delta_high": 0.6,
                        "p": 0.01 if units else np.nan, "q": 0.02 if units else np.nan,
                        "resampled": "layer, unit" if units else "", "about": "these networks",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_a_panel_a_kind_of_site_and_a_mark_an_effect() -> None:
    figure = forest(compared())
    figure.canvas.draw()
    assert len(figure.axes) == 4  # the sheet, two kinds of sites, networks
    for axes in figure.axes[1:]:
        marks = [line for line in axes.lines if line.get_marker() == "o"]
        assert [float(line.get_ydata()[0]) for line in marks] == [0.5, 1.5]
    first, second = (line for line in figure.axes[1].lines if line.get_marker() == "o")
    assert first.get_markerfacecolor() == first.get_markeredgecolor()  # excludes 0
    assert second.get_markerfacecolor() == "white"
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "2.00 − 1.50 = 0.500 (0.100 to 0.900)" in words
    assert "single seed" in words


def test_pairs_of_arms_have_colours_and_nothing_is_too_little() -> None:
    figure = forest(compared((("a", "b"), ("a", "c"))))
    marks = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert len({line.get_markeredgecolor() for line in marks}) == 2
    only = compared().query("site == ''")
    assert len(forest(only).axes) == 2


def test_the_page_has_a_row_a_measure_and_escapes() -> None:
    table = short_table(compared((("a", "b"), ("a", "<i>"))))
    assert len(table) == 12
    assert table["arms"].unique().tolist() == ["a − b", "a − <i>"]
    lines = markdown_table(table)
    assert "a − &lt;i&gt;" in lines[-1]
    assert {line.count(" | ") for line in lines[:3]} == {table.shape[1] - 1}
    assert "0.400 (0.200 to 0.600)" in lines[2]
