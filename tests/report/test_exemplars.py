"""Exemplars: the region is where the formula says, the caption says what is known and no more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.contour import ContourSet
from PIL import Image
from written import texts

from polysem.errors import ImageError
from polysem.report.exemplars import (
    activating_region,
    caption_lines,
    draw_exemplar,
    explain_captions,
    read_image,
)  # fmt: skip
from polysem.report.page import figure_of, page, styled
from polysem.report.unit import Caption, Exemplar


def bilinear(values: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge a map slowly: linear between centres of patches, constant beyond the outer ones."""
    rows, columns = values.shape
    out = np.zeros((rows * scale, columns * scale))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            y = np.clip((i + 0.5) / scale - 0.5, 0, rows - 1)
            x = np.clip((j + 0.5) / scale - 0.5, 0, columns - 1)
            top, left = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            v, u = y - top, x - left
            upper = values[top, left] * (1 - u) + values[top, right] * u
            lower = values[bottom, left] * (1 - u) + values[bottom, right] * u
            out[i, j] = upper * (1 - v) + lower * v
    return out


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (7, 2)])
def test_the_map_is_enlarged_bilinearly(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    region = activating_region(values)
    assert region is not None
    scale = 128 // max(shape)
    assert region[0].shape == (shape[0] * scale, shape[1] * scale)
    np.testing.assert_allclose(region[0], bilinear(values, scale), atol=1e-5)


def test_the_level_is_halfway_from_mean_to_peak() -> None:
    values = np.array([[0.0, 1.0], [2.0, 8.0]])
    assert activating_region(values)[1] == 4  # type: ignore[index]
    assert activating_region(values, base=2.0)[1] == 5  # type: ignore[index]
    assert activating_region(values, base=9.0)[1] == 4  # type: ignore[index]
    enlarged, level = activating_region(-values, base=-2.0, lower=True)  # type: ignore[misc]
    assert (level, enlarged.max()) == (5, 8)


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float32, (3, 4), elements=st.floats(-9, 9, width=16)),
    st.floats(-9, 9, width=16),
)
def test_the_lower_tail_is_the_upper_tail_turned_over(values: np.ndarray, base: float) -> None:
    upper = activating_region(values, base=base)
    lower = activating_region(-values, base=-base, lower=True)
    if values.min() == values.max():
        assert upper is lower is None
        return
    assert upper is not None and lower is not None
    np.testing.assert_array_equal(upper[0], lower[0])
    assert upper[1] == lower[1]
    y, x = np.unravel_index(values.argmax(), values.shape)
    scale = 128 // 4
    peak = upper[0][y * scale : (y + 1) * scale, x * scale : (x + 1) * scale].max()
    assert peak >= upper[1]  # the peak is inside


def test_no_region_where_there_is_nothing_to_see() -> None:
    assert activating_region(np.full((3, 4), 2.0)) is None
    assert activating_region(np.array([[np.nan, 1.0]])) is None
    assert activating_region(np.ones((1, 1))) is None


@styled
def _drawn(exemplar: Exemplar, pixels: np.ndarray | None, **options: object):  # type: ignore[no-untyped-def]
    sheet = page(3.0, 3.0)
    options = {"tail": "upper", "base": 0.0, "key": "some/folder/key_$1$.png", **options}
    draw_exemplar(sheet, (0.5, 1.0, 2.0, 1.0), exemplar, pixels, **options)  # type: ignore[arg-type]
    return sheet


def test_the_outline_lies_over_the_active_half_of_the_image() -> None:
    values = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    sheet = _drawn(Exemplar(3, 1.0, values), np.zeros((8, 16, 3), np.uint8))
    (outline,) = sheet.findobj(ContourSet)
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    np.testing.assert_allclose(points[:, 0], 1.5, atol=1e-3)  # the middle of 0.5 to 2.5
    assert points[:, 1].min() == pytest.approx(1.0)
    assert points[:, 1].max() == pytest.approx(2.0)
    picture, veil = (image.get_array() for image in sheet.get_images())
    assert picture.shape == (8, 16, 3)
    half = veil.shape[1] // 2
    assert (veil[:, : half - 1, 3] > 0).all() and (veil[:, half + 1 :, 3] == 0).all()
    assert sheet.get_xlim() == (0, 3)
    assert sheet.get_ylim() == (3, 0)


def test_an_image_that_activates_everywhere_is_framed() -> None:
    sheet = _drawn(Exemplar(0, 9.0, np.array([[9.0, 8.0]])), np.zeros((4, 8, 3), np.uint8))
    assert not sheet.findobj(ContourSet)
    assert [patch.get_fill() for patch in sheet.patches] == [False]


def test_an_image_that_is_gone_is_a_box_with_its_key() -> None:
    sheet = _drawn(Exemplar(0, 1.0, np.eye(3)), None)
    assert not sheet.get_images() and not sheet.findobj(ContourSet)
    assert texts(figure_of(sheet)) == ["not available", "some/folder/key_$1$.png"]


def test_only_errors_that_mean_a_missing_image_are_swallowed() -> None:
    def read(error: Exception) -> object:
        def images(_image: int) -> Image.Image:
            raise error

        return read_image(images, 0)

    assert read(KeyError(0)) is None
    assert read(IndexError()) is None
    assert read(ImageError("a", "truncated")) is None
    with pytest.raises(ZeroDivisionError):
        read(ZeroDivisionError())
    grey = Image.new("L", (5, 3), 7)
    assert read_image({4: grey}.__getitem__, 4).shape == (3, 5, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("caption", "lines", "explained"),
    [
        (Caption("k", "cat", "cat", True), ["✓ cat"], "class (✓ predicted right)"),
        (Caption("k", "cat", "dog", False), ["cat", "✗ dog"], "class (✗ taken for)"),
        (Caption("k", "cat", "tabby", None), ["cat", "→ tabby"], "class (→ predicted class)"),
        (Caption("k", "cat", None, None), ["cat"], "class"),
        (Caption("k", None, "tabby", None), ["→ tabby"], "predicted class"),
        (Caption("k", None, None, None), ["k"], "key"),
    ],
)
def test_captions_say_what_is_known(caption: Caption, lines: list[str], explained: str) -> None:
    assert caption_lines(caption) == lines
    assert explain_captions([caption]) == explained
