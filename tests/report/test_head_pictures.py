"""Pictures of heads: all is said, nothing overlaps, colours and lines are those of the tables."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import PlainSource
from matplotlib.collections import QuadMesh
from matplotlib.patches import Circle, FancyArrowPatch
from PIL import Image
from studied_run import studied_run, study_arrays
from written import check_legible

from polysem.analysis.coadaptation import add_head_tables
from polysem.errors import SpecError
from polysem.report import head_sheet as sheet_module
from polysem.report.exemplars import draw_exemplar
from polysem.report.head_curves import drop_curves
from polysem.report.head_graph import interaction_graph, strongest_pairs
from polysem.report.head_maps import importance_map, interaction_matrix
from polysem.report.head_sheet import head_sheet
from polysem.store.run import Run

N, LAYERS, HEADS = 20, 3, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    source = PlainSource("photos", [f"{i}.png" for i in range(N)], np.arange(N) % 2, ("ant", "bee"))
    out = tmp_path_factory.mktemp("runs") / "run"
    run = studied_run(out, study_arrays(N, LAYERS, HEADS), source=source)
    add_head_tables(run)
    return run


def picture(image: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (10 * image, 99, 99))


def gone(image: int) -> Image.Image:
    raise LookupError(image)


def test_importance_is_drawn_layer_by_head(run: Run) -> None:
    figure = importance_map(run)
    written = check_legible(figure)
    assert {"Head put to zero", "Head put to its mean", "Head of another image"} <= set(written)
    first = figure.findobj(QuadMesh)[0]
    table = run.table("heads")
    np.testing.assert_allclose(np.ravel(first.get_array()), table["importance_zero"])
    sure = (table["importance_zero_low"] > 0) | (table["importance_zero_high"] < 0)
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert len(dots[0].get_xdata()) == sure.sum()  # type: ignore[arg-type]


def test_the_matrix_is_that_of_the_table_in_another_order(run: Run) -> None:
    figure = interaction_matrix(run)
    check_legible(figure)
    (drawn,) = (axes.images[0] for axes in figure.axes if axes.images)
    matrix = np.asarray(drawn.get_array())
    np.testing.assert_array_equal(matrix, matrix.T)
    values = run.table("head_pairs")["interaction"]
    upper = matrix[np.triu_indices(LAYERS * HEADS, 1)]
    np.testing.assert_allclose(np.sort(upper), np.sort(values))


def test_the_graph_joins_the_strongest_pairs_that_are_sure(run: Run) -> None:
    pairs = run.table("head_pairs")
    figure = interaction_graph(run, most=4)
    check_legible(figure)
    fights, doubles = (strongest_pairs(pairs, sign, 4) for sign in (-1, 1))
    assert (fights["interaction_high"] < 0).all() and (doubles["interaction_low"] > 0).all()
    assert fights["interaction"].is_monotonic_increasing
    assert len(figure.findobj(FancyArrowPatch)) == len(fights) + len(doubles) > 0
    assert len(figure.findobj(Circle)) == LAYERS * HEADS


def test_curves_of_several_runs(run: Run) -> None:
    figure = drop_curves({"plain": run, "drophead": run})
    written = check_legible(figure)
    assert {"plain", "drophead", "share of heads dropped"} <= set(written)


def test_a_head_is_shown_with_the_images_that_need_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def note(
        sheet: object, box: object, exemplar: object, *args: object, **options: object
    ) -> None:
        drawn.append((exemplar, options))
        draw_exemplar(sheet, box, exemplar, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sheet_module.pictures, "draw_exemplar", note)
    figure = head_sheet(run, 1, 2, picture)
    written = check_legible(figure)
    assert "Layer 1, head 2" in written and "Needs it" in written
    one = run.gates.sel(layer=1).isel(head=2)
    gain = (one["cost_zero"] - run.gates["cost"]).to_numpy()
    order = np.argsort(-gain, kind="stable")
    upper = [e.image for e, options in drawn if options["tail"] == "upper"]
    assert upper == [int(k) for k in order[:8] if gain[k] > 0]
    lower = [(e, options) for e, options in drawn if options["tail"] == "lower"]
    assert lower[0][0].image == gain.argmin()
    for exemplar, options in lower:  # outlined where the head looks, not where it does not
        region = sheet_module.pictures.activating_region(
            exemplar.activation, base=options["base"], lower=True
        )
        assert region is not None
        enlarged, level = region
        look = one["attention_map"].to_numpy()[exemplar.image].astype(float)
        assert enlarged.max() == pytest.approx(look.max(), rel=0.05)
        assert level == pytest.approx((look.max() + look.min()) / 2, rel=0.02)


def test_images_that_are_gone_and_heads_that_never_were(run: Run) -> None:
    assert "not available" in check_legible(head_sheet(run, 0, 0, gone))
    for layer, head in ((3, 0), (0, 4)):
        with pytest.raises(SpecError, match="layers are 0 to 2, heads 0 to 3"):
            head_sheet(run, layer, head, picture)


def test_many_heads_of_a_large_model(tmp_path: Path) -> None:
    run = studied_run(tmp_path / "run", study_arrays(4, 12, 6))
    add_head_tables(run)
    for draw in (importance_map, interaction_matrix, interaction_graph):
        check_legible(draw(run))


def test_two_heads_and_one_image(tmp_path: Path) -> None:
    run = studied_run(tmp_path / "run", study_arrays(1, 2, 1, n_pairs=1))
    add_head_tables(run)
    for draw in (importance_map, interaction_matrix, interaction_graph):
        check_legible(draw(run))
    check_legible(drop_curves({"one": run}))
    check_legible(head_sheet(run, 0, 0, picture))
