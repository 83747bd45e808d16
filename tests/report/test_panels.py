"""The charts: bars, dots and numbers are those of the run."""

import numpy as np
import pytest
from drawn_run import Activations, PlainSource, random_activations, write_run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.patches import StepPatch
from written import check_legible, texts

from polysem.report.page import figure_of, page, styled
from polysem.report.panels import (
    class_rows,
    draw_class_profile,
    draw_histogram,
    draw_sparkline,
    write_statistics,
)  # fmt: skip
from polysem.report.unit import Unit, open_unit
from polysem.store.run import Run

N = 40
MLP = "blocks.0.mlp.hook_post"
LABELS = np.arange(N) % 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    keys = [str(i) for i in range(N)]
    source = PlainSource("photos", keys, LABELS, ("a", "b", "c", "d", "e", "unseen"))
    steady = np.zeros((N, 1, 2, 2))
    steady[:, 0, 0, 0], steady[:, 0, 1, 1] = 3.0, np.linspace(0, 1, N)
    activations = random_activations(N) | {"layer1.0.hook_post": Activations(steady, signed=False)}
    return write_run(tmp_path_factory.mktemp("runs") / "a", source, activations)


@styled
def _sheet(draw, unit: Unit, *rest: object):  # type: ignore[no-untyped-def]
    sheet = page(6.0, 3.0)
    draw(sheet, (0.6, 0.3, 4.5, 2.2), unit, *rest)
    return figure_of(sheet)


def test_histograms_count_every_sampled_image_in_every_pool_that_ranks(run: Run) -> None:
    unit = open_unit(run, MLP, 1)
    exemplars = {tail: unit.exemplars(tail, 4) for tail in unit.tails}
    figure = _sheet(draw_histogram, unit, exemplars)
    check_legible(figure)
    axes = figure.axes[1]
    filled = [patch for patch in axes.findobj(StepPatch) if patch.get_fill()]
    assert [patch.get_data().values.sum() for patch in filled] == [N, N]
    edges = filled[0].get_data().edges
    values = random_activations(N)[MLP].values[:, 1]
    assert (edges[0], edges[-1]) == pytest.approx((values.min(), values.max()), rel=1e-6)


def test_a_heavy_tail_is_counted_on_a_logarithmic_axis(run: Run) -> None:
    heavy = open_unit(run, "blocks.1.mlp.hook_post", 3)  # fires on three images
    flat = open_unit(run, "hook_pooled", 0)
    assert _sheet(draw_histogram, heavy, {}).axes[1].get_yscale() == "log"
    assert _sheet(draw_histogram, flat, {}).axes[1].get_yscale() == "linear"


def test_a_pool_that_is_constant_is_drawn(run: Run) -> None:
    steady = open_unit(run, "layer1.0.hook_post", 0)
    assert not steady.dead and steady.get("min", "max") == steady.get("max", "max") == 3
    check_legible(_sheet(draw_histogram, steady, {"upper": steady.exemplars("upper", 3)}))
    _sheet(draw_sparkline, steady)


def test_classes_are_sorted_and_empty_ones_left_out(run: Run) -> None:
    unit = open_unit(run, "hook_pooled", 2)
    figure = _sheet(draw_class_profile, unit, run.classes)
    axes = figure.axes[1]
    values = random_activations(N)["hook_pooled"].values[:, 2]
    means = np.array([values[label == LABELS].mean() for label in range(5)])
    shown = [tick.get_text() for tick in axes.get_yticklabels()]
    assert shown == ["abcde"[i] for i in np.argsort(-means)]
    (dots,) = (line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xdata(), np.sort(means)[::-1], rtol=1e-6)


@given(
    arrays(np.float64, st.integers(1, 60), elements=st.one_of(st.floats(-5, 5), st.just(np.nan)))
)
def test_class_rows_fall_and_hide_only_the_middle(means: np.ndarray) -> None:
    rows = class_rows(means)
    seen = means[~np.isnan(means)]
    shown = [means[row] for row in rows if row is not None]
    assert shown == sorted(shown, reverse=True)
    assert len(rows) <= 20
    assert (None in rows) == (len(seen) > 20)
    if None in rows:
        ranked = sorted(seen, reverse=True)
        assert shown == ranked[: rows.index(None)] + ranked[-(len(rows) - rows.index(None) - 1) :]
    else:
        assert sorted(shown) == sorted(seen)


def test_the_table_gives_every_pool_its_numbers(run: Run) -> None:
    unit = open_unit(run, MLP, 0)
    written = texts(_sheet(write_statistics, unit))
    assert {"max", "mean", "min", "excess kurtosis", "share above 0"} <= set(written)
    values = random_activations(N)[MLP].values[:, 0].max((1, 2))
    assert f"{values.max():.2f}" in written
    assert f"{values.std():.2f}" in written
