"""From the bytes of one image, as every reader in this folder finds them, to 8-bit RGB pixels.

Nothing in a file is trusted. Only the decoders listed in `FORMATS` may run, whatever the file is
called; sizes are checked before pixels are decoded; and whatever goes wrong becomes an
`ImageError` with the reason, so that a probe can skip the image and say why.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from polysem.errors import ImageError

__all__ = ["FORMATS", "MAX_PIXELS", "decode_image"]

#: Decoders that may run. Pillow knows more, some of which start other programs (EPS: Ghostscript).
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

#: Largest image that is decoded unless the caller says otherwise: 10,000 × 10,000, 300 MB as RGB.
MAX_PIXELS = 100_000_000

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

_LEADING_BYTES = {
    b"\xff\xd8\xff": "its JPEG header is damaged or cut short",
    b"\x89PNG": "its PNG header is damaged or cut short",
    b"GIF8": "its GIF header is damaged or cut short",
    b"RIFF": "its WebP header is damaged or cut short",
    b"BM": "its BMP header is damaged or cut short",
    b"II*\0": "its TIFF header is damaged or cut short",
    b"MM\0*": "its TIFF header is damaged or cut short",
    b"version https://git-lfs": "it is a Git LFS pointer; fetch the file itself with git lfs pull",
    b"%PDF": "it is a PDF document",
    b"%!PS": "it is a PostScript document",
    b"PK\x03\x04": "it is a zip archive",
    b"\x1f\x8b": "it is a gzip archive",
    b"<!doctype html": "it is a web page, perhaps in place of a failed download",
    b"<html": "it is a web page, perhaps in place of a failed download",
    b"<svg": "it is an SVG drawing, which has no pixels; export it as PNG",
}


def decode_image(
    source: bytes | str | os.PathLike[str], *, key: str, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return an image file as a plain 8-bit RGB picture without metadata.

    - The first frame of an animation is taken.
    - The EXIF orientation is applied, as image viewers and Hugging Face ``datasets`` do:
      a network is shown what a person sees, and maps drawn over it stand upright. (torchvision's
      and timm's own folder readers ignore it.)
    - Transparency (alpha, or a transparent colour) is composited over white.
    - 16-bit grey is scaled so that its full range, as the file declares it, becomes 0 to 255.
      32-bit whole numbers and floats declare no white: white is the smallest of 1 (floats only),
      255 and 65535 that holds all values. Negative, larger or non-finite values are refused.
    - CMYK and YCbCr are converted as Pillow does, without colour profiles.

    Safe to call from several threads, raises no warnings, and leaves Pillow's settings as they are:
    ``ImageFile.LOAD_TRUNCATED_IMAGES`` and ``Image.MAX_IMAGE_PIXELS`` stay the caller's. Nothing is
    printed, except that libtiff itself writes a line to stderr about a damaged compressed TIFF.

    Parameters
    ----------
    source : bytes or path
        Content of an image file, or where it lies.
    key : str
        What an error calls the image.
    max_pixels : int
        Larger images (width × height) are refused before they are decoded. Pillow's own limit,
        twice ``Image.MAX_IMAGE_PIXELS``, holds as well.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, at least 1 × 1.

    Raises
    ------
    ImageError
        If it cannot be read: missing, empty, truncated, damaged, too large, not an image.
    """
    try:
        with _pillow_silenced, ExitStack() as closing:
            file: IO[bytes] = (
                io.BytesIO(source)
                if isinstance(source, bytes)
                else closing.enter_context(open(source, "rb"))
            )
            try:
                image: Image.Image = closing.enter_context(Image.open(file, formats=FORMATS))
            except UnidentifiedImageError:
                raise _RefusedError(_what_else(file)) from None
            _check_size(image, max_pixels)
            return _rgb(image)
    # Pillow's decoders raise nearly anything on damaged input (struct.error, SyntaxError,
    # IndexError, RuntimeError …): at this boundary every failure is one unreadable image.
    except Exception as error:
        raise ImageError(key, _reason(error)) from None


class _RefusedError(Exception):
    """A finding of this module, already put in words."""


class _PillowSilenced:
    """While any thread is inside, warnings that Pillow raises about a file go nowhere.

    ``warnings.catch_warnings`` swaps process-wide state and threads that overlap would restore it
    in the wrong order; here the first thread in swaps it and the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught: warnings.catch_warnings[Any] | None = None
        if hasattr(os, "register_at_fork"):  # a fork while another thread decodes
            os.register_at_fork(after_in_child=self._start_over)

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._caught is not None:
                self._caught.__exit__(None, None, None)
                self._caught = None

    def _start_over(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        if self._caught is not None:
            self._caught.__exit__(None, None, None)
            self._caught = None


_pillow_silenced = _PillowSilenced()


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise _RefusedError(f"its size is {width} × {height} pixels")
    if width * height > max_pixels:
        raise _RefusedError(
            f"its {width} × {height} pixels are more than the limit of {max_pixels}"
        )


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged metadata says nothing about the pixels, which are decoded by now
        image.info.pop("exif", None)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bit_grey(image)
    elif image.has_transparency_data:
        over_white = Image.new("RGBA", image.size, "white")
        over_white.alpha_composite(image.convert("RGBA"))
        image = over_white
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """Scale 16- and 32-bit grey to 0–255; Pillow's own conversion cuts off all above 255."""
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        white = 65535
    else:
        white = _assumed_white(values, whole_numbers=image.mode == "I")
    grey = np.rint(values.astype(np.float32) * (255 / white)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8-bit files only
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey)


def _assumed_white(values: npt.NDArray[Any], *, whole_numbers: bool) -> int:
    if not np.isfinite(values).all():
        raise _RefusedError("its grey values include NaN or infinity")
    low, high = values.min(), values.max()
    whites = (255, 65535) if whole_numbers else (1, 255, 65535)
    if low < 0 or high > whites[-1]:
        raise _RefusedError(
            f"its 32-bit grey values run from {low:g} to {high:g}, so which one is white is "
            "unknown; store it with 8 or 16 bits"
        )
    return next(white for white in whites if high <= white)


def _what_else(file: IO[bytes]) -> str:
    """Put in words what a file is that no decoder recognises."""
    file.seek(0)
    head = file.read(1024)
    if not head:
        return "it is empty (0 bytes)"
    if not any(head):
        return "it holds only zero bytes, as after a broken copy"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, finding in _LEADING_BYTES.items():
        if head.startswith(start) or text.lower().startswith(start):
            return finding
    if head[4:8] == b"ftyp":
        return "it is a HEIF, AVIF or video file; convert it to JPEG or PNG"
    if b"<svg" in text:
        return _LEADING_BYTES[b"<svg"]
    if not set(head) & _CONTROL_BYTES:
        return "it is text, not an image"
    return f"it is in none of the formats {', '.join(FORMATS)}"


_CONTROL_BYTES = frozenset(range(32)) - set(b"\t\n\r\f\x1b")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "it declares more pixels than Pillow's limit (a decompression bomb?)"
    if isinstance(error, FileNotFoundError):
        return "the file is not there (any more)"
    if isinstance(error, OSError) and error.strerror:
        return f"the file cannot be opened ({error.strerror})"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    message = " ".join(str(error).split())
    return message if isinstance(error, _RefusedError) else f"it is damaged ({message or error!r})"
