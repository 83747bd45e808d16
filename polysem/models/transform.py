"""From a picture to what a model sees: the part of preprocessing that belongs to a checkpoint.

`data` gives PIL images, a :class:`Transform` makes uint8 tensors of them in the loader's workers
and floats of a batch of those on the device, and `load` keeps the one that a model was trained
with beside its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polysem.errors import DataError, SpecError, did_you_mean
from polysem.models.bcos import add_inverse

__all__ = ["Transform"]

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

#: What no transform scales a picture to: a side, and all pixels, of which most are cut off again.
_LONGEST_SIDE, _MOST_PIXELS = 20_000, 1 << 26


@dataclass(frozen=True)
class Transform:
    """How pictures become the input of one model; equals timm's evaluation pipeline.

    Attributes
    ----------
    size : (int, int)
        Height and width of the input in pixels.
    crop_pct : float
        The picture is scaled, with antialiasing, until its shorter side is ``size / crop_pct``
        (rounded down; for an oblong `size`, until it just covers that), and `size` is cut from
        its centre. A picture that already has that scale is not resampled.
    interpolation : str
        PIL's filter: bicubic, bilinear, box, hamming, lanczos or nearest.
    mean, std : (float, float, float)
        Of the colours, in [0, 1].
    inverse : bool
        The model takes six channels ``[x, 1 − x]``, as B-cos networks do; these know neither
        `mean` nor `std`.

    Raises
    ------
    SpecError
        If a value is out of range, or a B-cos input comes with a mean or deviation.

    Examples
    --------
    >>> transform = Transform(size=(32, 32), crop_pct=1.0, inverse=True)
    >>> pixels = transform(Image.new("RGB", (50, 40)))
    >>> tuple(pixels.shape), tuple(transform.normalize(pixels[None]).shape)
    ((3, 32, 32), (1, 6, 32, 32))
    """

    size: tuple[int, int]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    inverse: bool = False

    def __post_init__(self) -> None:
        for name, length in (("size", 2), ("mean", 3), ("std", 3)):
            value = getattr(self, name)
            if not _are_numbers(value, length):
                raise SpecError(f"transform.{name} must have {length} numbers, got {value!r}")
            object.__setattr__(self, name, tuple(value))  # JSON brings lists
        if not all(isinstance(side, Integral) and side >= 1 for side in self.size):
            raise SpecError(f"transform.size must be positive whole numbers, got {self.size}")
        if not (_are_numbers([self.crop_pct], 1) and 0 < self.crop_pct <= 1):
            raise SpecError(f"transform.crop_pct must be above 0 and at most 1: {self.crop_pct!r}")
        if max(self.size) / self.crop_pct > _LONGEST_SIDE:
            raise SpecError(
                f"transform.size {self.size} at crop_pct {self.crop_pct} scales pictures to more "
                f"than {_LONGEST_SIDE:,} pixels a side"
            )
        if not isinstance(self.inverse, bool):
            raise SpecError(f"transform.inverse must be true or false, got {self.inverse!r}")
        if not (isinstance(self.interpolation, str) and self.interpolation in _FILTERS):
            hint = (
                did_you_mean(str(self.interpolation), _FILTERS)
                or f"; known are {', '.join(_FILTERS)}"
            )
            raise SpecError(f"unknown transform.interpolation {self.interpolation!r}{hint}")
        if not min(self.std) > 0:
            raise SpecError(f"transform.std must be positive, got {self.std}")
        if self.inverse and (any(self.mean) or self.std != (1, 1, 1)):
            raise SpecError(
                "a B-cos input [x, 1 − x] takes no mean or std, but the transform has "
                f"mean {self.mean} and std {self.std}"
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Scale and crop a picture.

        Parameters
        ----------
        image : PIL.Image.Image
            Of any size; of another mode than RGB, it is converted.

        Returns
        -------
        Tensor
            uint8 [channel, y, x] of shape ``(3, *size)``.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        width, height = self._scaled(image.width, image.height)
        if width * height > _MOST_PIXELS:
            image = self._middle(image)
            width, height = self._scaled(image.width, image.height)
        if (width, height) != image.size:
            image = image.resize((width, height), _FILTERS[self.interpolation])
        left, top = round((width - self.size[1]) / 2), round((height - self.size[0]) / 2)
        if image.size != self.size[::-1]:
            image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which a picture is scaled before the crop."""
        target_y, target_x = (math.floor(side / self.crop_pct) for side in self.size)
        if target_y == target_x:
            short, long = sorted((width, height))
            long = int(target_y * long / short)
            return (target_y, long) if width <= height else (long, target_y)
        ratio = min(height / target_y, width / target_x)
        return round(width / ratio), round(height / ratio)

    def _middle(self, image: Image.Image) -> Image.Image:
        """Return the middle of a long strip, whose ends would be scaled up only to be cut off."""
        kept = 2 * math.ceil(min(image.size) * max(self.size) / min(self.size)) + 16
        left, top = (max(0, side - kept) // 2 for side in image.size)
        return image.crop((left, top, image.width - left, image.height - top))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn pixels into what the model takes, on the device that they are on.

        Parameters
        ----------
        pixels : Tensor
            uint8 [image, channel, y, x], as a loader stacks the results of calling the transform.

        Returns
        -------
        Tensor
            float32 [image, channel, y, x]: ``(pixels/255 − mean) / std``, or the six channels
            ``[x, 1 − x]`` of ``x = pixels/255``.

        Raises
        ------
        DataError
            If the pixels are not uint8.
        """
        if pixels.dtype != torch.uint8:
            raise DataError(f"normalize takes uint8 pixels from 0 to 255, got {pixels.dtype}")
        x = pixels.to(torch.float32).div_(255)
        if self.inverse:
            return add_inverse(x)
        for channel, mean, std in zip(x.unbind(1), self.mean, self.std, strict=True):
            channel.sub_(mean).div_(std)
        return x

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transform:
        """Return the transform that :meth:`to_dict` described.

        Raises
        ------
        SpecError
            If a field is unknown, `size` is missing, or a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise SpecError(f"unknown transform field {name!r}{did_you_mean(name, known)}")
        if "size" not in values:
            raise SpecError("a transform needs the field 'size' [height, width]")
        return cls(**values)


def _are_numbers(value: Any, length: int) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == length
        and all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )
