"""Site sheets: a row a unit, in order, legible."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import Activations, PlainSource, random_activations, write_run
from PIL import Image
from written import check_legible

from polysem.errors import SpecError
from polysem.report.figures import striking_units
from polysem.report.site_sheet import site_sheet
from polysem.store.run import Run

N = 20
MLP = "blocks.0.mlp.hook_post"


def picture(image: int) -> Image.Image:
    return Image.new("RGB", (48, 32), (image, 90, 90))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    labels = np.arange(N) % 2
    source = PlainSource("photos", [str(i) for i in range(N)], labels, ("a bird", "x" * 99))
    path = tmp_path_factory.mktemp("runs") / "a"
    return write_run(path, source, random_activations(N), size=(32, 48))


@pytest.mark.parametrize("site", list(random_activations(2)))
def test_the_striking_units_of_every_kind_of_site(run: Run, site: str) -> None:
    figure = site_sheet(run, site, picture, n_units=3)
    written = check_legible(figure)
    name = "head" if "attn" in site else "unit"
    assert [t for t in written if t.startswith(f"{name} ")] == [
        f"{name} {unit}" for unit in striking_units(run, site, 3)
    ]
    assert ("Lowest" in written) == (len(run.manifest["sites"][site]["tails"]) == 2)
    assert any("Outlined" in text for text in written) == (site != "hook_pooled")


def test_chosen_units_come_in_order_dead_ones_too(run: Run) -> None:
    figure = site_sheet(run, MLP, picture, units=[4, 2, 0])
    written = check_legible(figure)
    assert [t for t in written if t.startswith("unit ")] == ["unit 4", "unit 2", "unit 0"]
    assert "dead" in written
    assert f"{MLP} · 3 of 5 units" in written


def test_a_site_of_dead_units(tmp_path: Path) -> None:
    source = PlainSource("photos", [str(i) for i in range(N)])
    shown = {MLP: Activations(np.zeros((N, 3, 2, 2)))}
    figure = site_sheet(write_run(tmp_path / "a", source, shown), MLP, picture)
    assert "all units of this site are dead" in check_legible(figure)


def test_no_such_unit(run: Run) -> None:
    with pytest.raises(SpecError, match="has no unit 5"):
        site_sheet(run, MLP, picture, units=[0, 5])
