"""Sizes and names of the vision transformers that `vit` registers, and timm's words for them."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ["VARIANTS", "variant_args", "variant_cfg", "variant_name"]

#: Of each size: width, depth and heads.
_SIZES = {
    "micro": (128, 8, 4),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
#: Widths of the stem of a base model that shrinks images by 16, from the official code; stems of
#: smaller patches are the end of a longer one.
_BASE_STEM = (64, 128, 128, 256, 256, 512)
_INPUTS = {4: 32, 8: 64, 16: 224}


def _stem(size: str, patch_size: int) -> tuple[int, ...]:
    """Return the widths of a stem that shrinks images by `patch_size`."""
    halvings = int(math.log2(patch_size))
    if size == "base":
        return tuple(width for width in _BASE_STEM if width >= 512 >> (halvings - 1))
    width = _SIZES[size][0]
    return tuple(width >> shift for shift in reversed(range(halvings)))


def variant_name(kind: str, stem: str, size: str, patch_size: int) -> str:
    """Return the name under which timm knows a variant."""
    if (kind, stem, size, patch_size) == ("standard", "vit", "base", 16):
        return "vit_base_patch16_relpos_gap_224"  # without the word it is a model of timm's
    if kind == "bcos":
        return f"bcos_{stem}_{size}_patch{patch_size}_{_INPUTS[patch_size]}"
    return f"{stem}_{size}_patch{patch_size}_gap_{_INPUTS[patch_size]}"


def variant_cfg(kind: str, patch_size: int) -> dict[str, Any]:
    """Return timm's description of the input; the official B-cos evaluation crop at 224 px."""
    side, bcos = _INPUTS[patch_size], kind == "bcos"
    return {
        "input_size": (6 if bcos else 3, side, side),
        "num_classes": 1000,
        "crop_pct": 0.875 if side == 224 else 1.0,
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0) if bcos else IMAGENET_DEFAULT_MEAN,
        "std": (1.0, 1.0, 1.0) if bcos else IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head.linear" if bcos else "head",
    }


def variant_args(kind: str, stem: str, size: str, patch_size: int) -> dict[str, Any]:
    """Return the arguments of `VisionTransformer` that make up a variant."""
    width, depth, heads = _SIZES[size]
    return {
        "img_size": _INPUTS[patch_size],
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth - 1 if stem == "vitc" else depth,
        "num_heads": heads,
        "stem": _stem(size, patch_size) if stem == "vitc" else (),
        "in_chans": 6 if kind == "bcos" else 3,
    }


#: Kind, stem, size and patch size of every registered model.
VARIANTS = list(product(("bcos", "standard"), ("vit", "vitc"), _SIZES, _INPUTS))
