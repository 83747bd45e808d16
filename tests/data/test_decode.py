"""Every kind of image becomes RGB as a viewer shows it; every bad file one reason."""

from __future__ import annotations

import io
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from polysem.data.decode import decode_image
from polysem.errors import ImageError

RAMP = np.arange(3 * 5, dtype=np.uint8).reshape(3, 5) * 17


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    image = decode_image(content, key="k")
    assert image.mode == "RGB"
    assert image.info == {}
    return np.asarray(image)


def reason(content: bytes | Path, **options: Any) -> str:
    with pytest.raises(ImageError, match=r"^image 'k' cannot be read: ") as caught:
        decode_image(content, key="k", **options)
    assert caught.value.__cause__ is None
    assert "0x" not in caught.value.reason  # no addresses of Python objects
    assert "\n" not in caught.value.reason
    return caught.value.reason


def grey(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.repeat(values[:, :, None], 3, axis=2)


# ---------------------------------------------------------------- what can be read


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_keep_their_pixels(form: str) -> None:
    picture = np.stack([RAMP, RAMP[::-1], np.zeros_like(RAMP)], axis=2)
    options = {"lossless": True} if form == "WEBP" else {}
    image = Image.fromarray(picture)
    if form == "GIF":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        picture = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels(encoded(image, form, **options)), picture)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_8_bit_grey(form: str) -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(RAMP), form)), grey(RAMP))


def test_black_and_white() -> None:
    content = encoded(Image.fromarray(RAMP > 99), "PNG")
    np.testing.assert_array_equal(pixels(content), grey(np.where(RAMP > 99, 255, 0)))


def test_one_pixel() -> None:
    assert pixels(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]


def test_a_path_reads_as_its_bytes(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(RAMP), "PNG")
    (tmp_path / "a.jpg").write_bytes(content)  # the content counts, not the name
    by_path = decode_image(tmp_path / "a.jpg", key="k")
    np.testing.assert_array_equal(np.asarray(by_path), pixels(content))


def test_alpha_is_composited_over_white() -> None:
    clear, half, full = (10, 20, 30, 0), (0, 100, 200, 128), (10, 20, 30, 255)
    image = Image.new("RGBA", (3, 1))
    for x, colour in enumerate((clear, half, full)):
        image.putpixel((x, 0), colour)
    got = pixels(encoded(image, "PNG"))[0]
    assert got[0].tolist() == [255, 255, 255]
    assert got[2].tolist() == [10, 20, 30]
    np.testing.assert_allclose(got[1], 255 - (255 - np.array(half[:3])) * 128 / 255, atol=1)


def test_grey_with_alpha_is_composited_over_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putpixel((0, 0), (40, 0))
    image.putpixel((1, 0), (40, 255))
    assert pixels(encoded(image, "PNG"))[0, :, 0].tolist() == [255, 40]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_a_transparent_entry(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    got = pixels(encoded(image, "PNG", transparency=transparency))
    assert got.tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_rgb_with_a_transparent_colour() -> None:
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((0, 0), (1, 2, 3))
    got = pixels(encoded(image, "PNG", transparency=(1, 2, 3)))
    assert got.tolist() == [[[255, 255, 255], [9, 9, 9]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(form: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = np.rint(values / 65535 * 255)
    assert expected.max() == 255
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), form)), grey(expected))


def test_16_bit_grey_with_a_transparent_value() -> None:
    values = np.array([[0, 1000, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values), "PNG")
    header_end = 8 + 25
    chunk = b"tRNS" + struct.pack(">H", 1000)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    got = pixels(content[:header_end] + chunk + content[header_end:])
    assert got[0, :, 0].tolist() == [0, 255, 255]


def test_16_bit_grey_where_zero_is_white() -> None:
    values = np.array([[0, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert pixels(content)[0, :, 0].tolist() == [255, 0]


def test_12_bit_tiff_uses_its_own_full_range() -> None:
    # Two pixels, 0 and 4095, packed as 12 bits each; Pillow reads but does not write these.
    data = bytes([0x00, 0x0F, 0xFF])
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 12) + data.ljust(4, b"\0")
    content += struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    assert pixels(content)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.array([[0, 0.25, 1]], dtype=np.float32), 1),
        (np.array([[0, 100, 255]], dtype=np.float32), 255),
        (np.array([[0, 100, 300]], dtype=np.float32), 65535),
        (np.array([[0, 1, 255]], dtype=np.int32), 255),
        (np.array([[0, 1, 65535]], dtype=np.int32), 65535),
    ],
)
def test_32_bit_grey_takes_the_smallest_usual_white(
    values: np.ndarray[Any, Any], white: int
) -> None:
    expected = np.rint(values / white * 255)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), "TIFF")), grey(expected))


@pytest.mark.parametrize("values", [[-1, 5], [0, 70000]])
def test_32_bit_grey_without_a_known_white_is_refused(values: list[int]) -> None:
    content = encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")
    assert f"run from {values[0]} to {values[1]}" in reason(content)


def test_grey_with_nan_is_refused() -> None:
    content = encoded(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "TIFF")
    assert "NaN" in reason(content)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_including_inverted_adobe_jpeg(form: str) -> None:
    # Pillow writes CMYK JPEG inverted with an Adobe marker, as Photoshop does.
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels(encoded(red, form))[8, 8], [255, 0, 0], atol=3)


@pytest.mark.parametrize(
    ("orientation", "where"),
    list(enumerate([(0, 0), (0, 1), (2, 1), (2, 0), (0, 0), (0, 2), (1, 2), (1, 0)], start=1)),
)
def test_exif_orientation_is_applied(orientation: int, where: tuple[int, int]) -> None:
    image = Image.new("L", (2, 3), 0)  # width 2, height 3, upper left pixel lit
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(encoded(image, "PNG", exif=exif))
    assert got.shape[:2] == ((3, 2) if orientation < 5 else (2, 3))
    assert tuple(np.argwhere(got[:, :, 0])[0]) == where


def test_damaged_exif_leaves_the_image_as_it_is() -> None:
    exif = b"Exif\0\0II*\0" + b"\xff" * 40
    content = encoded(Image.new("RGB", (4, 2), "red"), "JPEG", exif=exif)
    assert pixels(content).shape == (2, 4, 3)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_several(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixels(content)[2, 2], [255, 0, 0], atol=6)


# ---------------------------------------------------------------- what cannot


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (bytes(5000), "zero bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='3'/>", "SVG"),
        (b"  <!DOCTYPE html><p>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"just some words\nin a file", "text, not an image"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"PK\x03\x04 zipped", "zip"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "HEIF"),
        (b"\x01\x02\x03\x04 something else", "none of the formats"),
        (b"\xff\xd8\xff\xe0", "JPEG header"),
        (b"\x89PNG\r\n\x1a\n", "PNG header"),
        (b"GIF89a", "GIF header"),
        (b"BM", "BMP header"),
    ],
)
def test_what_is_not_an_image_is_named(content: bytes, words: str) -> None:
    assert words in reason(content)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_truncated(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), form)
    assert "damaged" in reason(content[: len(content) * 2 // 3])


def test_formats_that_start_other_programs_are_refused() -> None:
    content = encoded(Image.new("RGB", (4, 4)), "EPS")
    assert "PostScript" in reason(content)


def test_missing_unreadable_and_not_a_file(tmp_path: Path) -> None:
    assert "not there" in reason(tmp_path / "gone.png")
    assert "cannot be opened" in reason(tmp_path)


def test_more_pixels_than_allowed() -> None:
    content = encoded(Image.new("L", (20, 10)), "PNG")
    assert "20 × 10 pixels are more than the limit of 199" in reason(content, max_pixels=199)
    assert decode_image(content, key="k", max_pixels=200).size == (20, 10)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs(side: int, recwarn: pytest.WarningsRecorder) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
    )
    assert "limit" in reason(b"\x89PNG\r\n\x1a\n" + chunks)
    assert not recwarn.list


# ---------------------------------------------------------------- side effects


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM"]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=6),
)
def test_damage_gives_an_image_or_an_image_error(
    form: str, cut: float, flips: list[tuple[float, int]]
) -> None:
    content = bytearray(encoded(Image.fromarray(RAMP), form))
    for where, bits in flips:
        content[int(where * (len(content) - 1))] ^= bits
    try:
        image = decode_image(bytes(content[: int(cut * len(content)) + 1]), key="k")
    except ImageError as error:
        assert error.key == "k"
    else:
        assert image.mode == "RGB"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000"])
def test_nothing_is_printed_and_nothing_is_changed(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    content = encoded(Image.fromarray(RAMP), form)
    for end in range(1, len(content) + 1, 5):
        try:
            decode_image(content[:end], key="k")
        except ImageError:
            continue
    assert capfd.readouterr() == ("", "")
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    assert after == before


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    good = encoded(Image.fromarray(RAMP), "TIFF")
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(60):
                decode_image(good, key="k")
        except BaseException as error:
            failures.append(error)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not failures
    assert warnings.filters == before
