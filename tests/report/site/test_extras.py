"""Comparisons, evolutions and explanations on the site: what is said, and what is refused."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from site_extras import (
    SITES,
    STEPS,
    comparison_folder,
    evolution_folder,
    explanation_folder,
)
from site_run import EVIL, bare_run, picture

from polysem.errors import RunError
from polysem.report.site.comparison import _is_sure
from polysem.report.site.extras import kind_of_folder, open_extra, shrunk_picture
from polysem.report.site.write import write_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("all")
    extras = [
        comparison_folder(place / "cmp"),
        evolution_folder(place / "evo"),
        explanation_folder(place / "why"),
    ]
    return write_site([bare_run(place / "run")], [picture], place / "site", extras=extras).parent


def figures(page: Path) -> dict[str, Any]:
    found = re.findall(
        r'<script type="application/json" id="([^"]+)">(.*?)</script>', page.read_text(), re.DOTALL
    )
    return {name: json.loads(text) for name, text in found}


def test_kinds_are_told_by_their_marks(tmp_path: Path) -> None:
    assert kind_of_folder(comparison_folder(tmp_path / "a")) == "comparison"
    assert kind_of_folder(evolution_folder(tmp_path / "b")) == "evolution"
    assert kind_of_folder(explanation_folder(tmp_path / "c")) == "explanations"
    assert kind_of_folder(tmp_path) is None


def test_names_are_escaped(site: Path) -> None:
    for name in ("comparison", "evolution", "explanations"):
        page = (site / f"{name}.html").read_text()
        assert EVIL not in page
        assert html.escape(EVIL, quote=True) in page


def test_forests_show_effects_with_intervals_and_which_are_sure(site: Path) -> None:
    drawn = figures(site / "comparison.html")
    (units,) = (f for name, f in drawn.items() if name.endswith("-0"))
    (trace,) = units["data"]
    assert trace["x"] == [0.5, -0.2]
    assert trace["error_x"]["array"] == pytest.approx([0.1, 0.1])
    assert trace["marker"]["color"] == ["--accent", "--paper"]  # filled: q at most 5 %
    assert EVIL not in json.dumps(units)  # plotly reads tags in labels
    (networks,) = (f for name, f in drawn.items() if name.endswith("-networks"))
    assert networks["data"][0]["x"] == [0.25]  # a missing difference is no dot


def test_effects_are_sure_by_interval_and_by_test_where_there_is_one() -> None:
    rows = pd.DataFrame({
        "delta_low": [0.1, -0.3, -0.1, 0.1, float("nan")],
        "delta_high": [0.3, -0.1, 0.1, 0.3, float("nan")],
        "q": [0.01, float("nan"), 0.01, 0.2, 0.01],
    })  # fmt: skip
    assert _is_sure(rows, "delta").tolist() == [True, True, False, False, False]


def test_a_comparison_in_which_nothing_is_sure_says_so(tmp_path: Path) -> None:
    folder = comparison_folder(tmp_path / "cmp")
    table = pd.read_parquet(folder / "comparison.parquet")
    table.assign(q=1.0).to_parquet(folder / "comparison.parquet")
    run = bare_run(tmp_path / "run")
    page = write_site([run], [picture], tmp_path / "site", extras=[folder]).parent
    said = (page / "comparison.html").read_text()
    assert "Nothing differs at a false discovery rate of 5 %" in said


def test_evolution_has_a_line_for_each_site_and_leaves_out_what_is_not_there(site: Path) -> None:
    drawn = figures(site / "evolution.html")
    assert {name.split("-", 1)[1] for name in drawn} == {
        "cka_final", "born_correlation", "excess_rank", "ms_above_chance",
    }  # fmt: skip
    for figure in drawn.values():
        assert [trace["name"] for trace in figure["data"]] == SITES
        assert all(trace["x"] == STEPS for trace in figure["data"])
    page = (site / "evolution.html").read_text()
    assert "median of 3 of 4 faces" in page
    assert page.count("<img") == 2


def test_explanations_show_every_picture_once_with_words(site: Path) -> None:
    page = (site / "explanations.html").read_text()
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert len(sources) == len(set(sources)) == 8
    assert all((site / source).is_file() for source in sources)
    assert page.count('alt="') == 8
    assert "1.0e-06" in page


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1000)).save(tmp_path / "a.png")
    one = shrunk_picture(tmp_path / "a.png", tmp_path / "site", "x/a")
    assert (one["width"], one["height"]) == (1500, 500)
    with Image.open(tmp_path / "site" / one["src"]) as opened:
        assert opened.size == (1500, 500)


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    folder = explanation_folder(tmp_path / "why")
    (folder / "images" / "0000-image.png").write_bytes(b"no picture")
    with pytest.raises(RunError, match="0000-image"):
        write_site([bare_run(tmp_path / "run")], [picture], tmp_path / "s", extras=[folder])
    assert not (tmp_path / "s").exists()
    (folder / "explain.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        open_extra(folder, "why")
    with pytest.raises(RunError, match="is no run"):
        open_extra(tmp_path, "x")
