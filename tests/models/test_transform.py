"""The transform equals timm's evaluation pipeline and survives its way through JSON."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from polysem.errors import DataError, SpecError
from polysem.models.transform import Transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.sampled_from([(16, 16), (24, 24), (16, 24), (24, 18)]),
    crop_pct=st.sampled_from([1.0, 0.9, 0.875, 0.6]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
)
@settings(deadline=None)  # a busy machine is no failure
def test_equals_timm_s_pipeline_on_images_of_any_size(
    width: int, height: int, size: tuple[int, int], crop_pct: float, interpolation: str
) -> None:
    ours = Transform(size, crop_pct, interpolation, MEAN, STD)
    timm_s = create_transform(
        size, crop_pct=crop_pct, interpolation=interpolation, mean=MEAN, std=STD
    )
    image = picture(width, height)
    pixels = ours(image)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, *size)
    assert torch.equal(ours.normalize(pixels[None])[0], timm_s(image))


def test_equals_timm_s_pipeline_at_full_size() -> None:
    ours, image = Transform((224, 224), 0.9, "bicubic", MEAN, STD), picture(401, 333)
    timm_s = create_transform(224, crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD)
    assert torch.equal(ours.normalize(ours(image)[None])[0], timm_s(image))


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = picture(20, 30)
    exact = np.asarray(image)
    whole = Transform((30, 20), crop_pct=1.0)(image)
    assert np.array_equal(whole.permute(1, 2, 0).numpy(), exact)
    middle = Transform((18, 18), crop_pct=0.9)(image)  # scaled so that the shorter side is 20
    assert np.array_equal(middle.permute(1, 2, 0).numpy(), exact[6:24, 1:19])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_are_converted(mode: str) -> None:
    image = picture(9, 7).convert(mode)
    transform = Transform((7, 9), crop_pct=1.0)
    assert torch.equal(transform(image), transform(image.convert("RGB")))


def test_normalize_scales_shifts_and_leaves_its_input_alone() -> None:
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    before = pixels.clone()
    plain = Transform((4, 5)).normalize(pixels)
    assert plain.dtype == torch.float32 and torch.equal(plain, pixels / 255)
    shifted = Transform((4, 5), mean=MEAN, std=STD).normalize(pixels)
    for channel in range(3):
        expected = (plain[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(shifted[:, channel], expected)
    inverse = Transform((4, 5), inverse=True).normalize(pixels)
    assert torch.equal(inverse, torch.cat([plain, 1 - plain], dim=1))
    assert torch.equal(pixels, before)


def test_normalize_refuses_pixels_that_are_already_floats() -> None:
    with pytest.raises(DataError, match="uint8"):
        Transform((4, 5)).normalize(torch.rand(2, 3, 4, 5))


def test_goes_through_json_and_pickle() -> None:
    for transform in (
        Transform((16, 24), 0.9, "bilinear", MEAN, STD),
        Transform((64, 64), 1.0, inverse=True),
    ):
        text = json.dumps(transform.to_dict())
        assert Transform.from_dict(json.loads(text)) == transform
        assert pickle.loads(pickle.dumps(transform)) == transform
        assert hash(transform) == hash(Transform.from_dict(json.loads(text)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs the field 'size'"),
        ({"size": [8, 8], "interpolaton": "bicubic"}, "did you mean 'interpolation'"),
        ({"size": [8]}, "size must have 2 numbers"),
        ({"size": [8, 0]}, "must be positive"),
        ({"size": [8, 8], "crop_pct": 0}, "crop_pct"),
        ({"size": [8, 8], "crop_pct": 1.2}, "crop_pct"),
        ({"size": [8, 8], "interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"size": [8, 8], "interpolation": "x"}, "known are bicubic"),
        ({"size": [8, 8], "std": [1, 1, 0]}, "std must be positive"),
        ({"size": [8, 8], "mean": [1, 1]}, "mean must have 3 numbers"),
        ({"size": [8, 8], "inverse": True, "mean": MEAN}, "takes no mean or std"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Transform.from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {"size": "ab"}, {"size": (4,)}, {"size": (4.5, 4)}, {"size": (True, True)}, {"size": None},
        {"size": (10**9, 10**9)}, {"crop_pct": 1e-9}, {"crop_pct": "x"}, {"crop_pct": math.nan},
        {"interpolation": ["box"]}, {"interpolation": None}, {"mean": 3}, {"inverse": "no"},
        {"std": (1, 1, math.inf)}, {"mean": ("a", "b", "c")},
    ],
)  # fmt: skip
def test_what_json_may_hold_instead_of_a_transform(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="transform"):
        Transform.from_dict({"size": (32, 32), **values})


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1), (3, 200_001)])
def test_a_long_strip_is_scaled_in_its_middle_only(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2 - 4, size[1] // 2 - 4, size[0] // 2 + 4, size[1] // 2 + 4))
    pixels = Transform(size=(224, 224))(image)
    assert tuple(pixels.shape) == (3, 224, 224)
    assert (pixels[2] > 250).all() and (pixels[0] < 5).all()  # what is seen is the middle
