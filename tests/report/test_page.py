"""The page: lengths in inches that hold, text that fits, files that are whole."""

import math
import os
from pathlib import Path

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from written import boxes, check_legible

from polysem.errors import RunError, SpecError
from polysem.report import page as page_module
from polysem.report.page import (
    figure_of,
    fit,
    number,
    page,
    panel,
    readable,
    save,
    styled,
    text_width,
    write,
)  # fmt: skip


def test_a_panel_is_where_it_was_put() -> None:
    sheet = page(8.0, 5.0)
    axes = panel(sheet, 1.0, 0.5, 2.0, 3.0)
    box = axes.get_position()
    assert (box.x0 * 8, (1 - box.y1) * 5) == pytest.approx((1.0, 0.5))
    assert (box.width * 8, box.height * 5) == pytest.approx((2.0, 3.0))


@styled
def _one_line(text: str, **options: object) -> tuple[float, Figure]:
    sheet = page(4.0, 1.0)
    return write(sheet, 0.5, 0.5, text, **options), figure_of(sheet)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["blocks.3.mlp.hook_post", "✓ $a_b$ ✗ →", "iiiii", "WWW…"])
@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_width_is_what_is_drawn(text: str, weight: str) -> None:
    width, figure = _one_line(text, size=7, weight=weight)
    ((drawn, box),) = boxes(figure)
    assert drawn == text  # no mathematics was made of it
    assert box.width / figure.dpi == pytest.approx(width, abs=0.02)
    assert box.x0 / figure.dpi == pytest.approx(0.5, abs=0.02)


def test_the_test_for_legibility_sees_collisions() -> None:
    for x, y in ((0.5, 0.52), (3.9, 0.5), (0.5, 0.0)):
        sheet = page(4.0, 1.0)
        write(sheet, 0.5, 0.5, "one")
        check_legible(figure_of(sheet))
        write(sheet, x, y, "other")
        with pytest.raises(AssertionError, match=r"overlap|leaves the page"):
            check_legible(figure_of(sheet))


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60), st.floats(0.2, 3.0), st.sampled_from(["start", "end"]))
def test_fitted_text_fits_and_keeps_all_it_can(text: str, width: float, keep: str) -> None:
    shown = readable(text)
    fitted = fit(text, width, size=7, keep=keep)  # type: ignore[arg-type]
    assert text_width(fitted, size=7) <= width
    if text_width(shown, size=7) <= width:
        assert fitted == shown
    else:
        kept = fitted.strip("…").strip()
        assert "…" in fitted
        assert shown.startswith(kept) if keep == "start" else shown.endswith(kept)


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_any_text_is_one_line_that_can_be_drawn(text: str) -> None:
    shown = readable(text)
    assert len(shown.splitlines()) <= 1
    assert readable(shown) == shown
    text_width(shown, size=7)  # warns, and so fails, where a glyph is missing


def test_text_that_plays_tricks() -> None:
    assert readable(" a\tb\nc\x00 ") == "a b c"
    assert readable("\u202egnp.exe") == "gnp.exe"
    assert readable("<script>$x_1$</script>") == "<script>$x_1$</script>"
    assert readable("\U0010ffff") == "▯"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1.00"), (-12.345, "−12.3"), (123.4, "123"),
        (99999.0, "99,999"), (0.00123, "0.00123"), (1.23e-7, "1.2e-07"), (2.5e9, "2.5e+09"),
        (math.nan, "–"),
    ],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-3, 1e6, exclude_max=True))
def test_numbers_keep_three_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5e-3)


def test_the_users_style_changes_nothing() -> None:
    with mpl.rc_context({"font.size": 30, "text.usetex": True, "figure.facecolor": "black"}):
        width, figure = _one_line("plain", size=7)
    assert width == _one_line("plain", size=7)[0]
    assert figure.get_facecolor() == (1, 1, 1, 1)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_a_picture_is_the_same_file_each_time(tmp_path: Path, suffix: str) -> None:
    files = [save(_one_line("a")[1], tmp_path / f"{i}" / f"a{suffix}") for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert os.listdir(files[0].parent) == [f"a{suffix}"]
    if suffix == ".png":
        with Image.open(files[0]) as picture:
            assert picture.size == (600, 150)


def test_a_wrong_name_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a\.jpg is no name for a picture.*\.png"):
        save(_one_line("a")[1], tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        save(_one_line("a")[1], tmp_path / "file" / "a.png")


def test_a_failed_picture_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = save(_one_line("a")[1], tmp_path / "a.png")
    older = out.read_bytes()

    def full(_source: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_module.os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        save(_one_line("b")[1], out)
    assert out.read_bytes() == older
    assert os.listdir(tmp_path) == ["a.png"]
