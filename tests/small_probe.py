"""Images and networks small enough to probe in a second, for the tests of what a probe records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from polysem.data.dataset import ImageData
from polysem.errors import ImageError
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform

N = 37


class Noise(ImageData):
    """Random pictures; those in `broken` cannot be read."""

    fingerprint = "0" * 64

    def __init__(self, n: int = N, *, labelled: bool = True, broken: tuple[int, ...] = ()) -> None:
        super().__init__(
            "noise",
            [f"noise/{i:03d}" for i in range(n)],
            labels=np.arange(n) % 3 if labelled else None,
            classes=("a", "b", "c") if labelled else None,
        )
        self.broken = broken

    def read(self, index: int) -> Image.Image:
        if index in self.broken:
            raise ImageError(self.keys[index], "truncated")
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def loaded(name: str, *, num_classes: int = 3, **options: Any) -> LoadedModel:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **options).eval()
    for parameter in model.parameters():  # zero-initialised parts would hide mistakes
        nn.init.normal_(parameter, std=0.2)
    transform = Transform(size=(32, 32), inverse=name.startswith("bcos"))
    return LoadedModel(model, transform, None, name, f"timm:{name}", "0" * 64)


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def models() -> dict[str, Callable[[], LoadedModel]]:
    return {
        "cls": lambda: loaded("vit_tiny_patch16_224", **VIT),
        "registers": lambda: loaded("vit_tiny_patch16_224", reg_tokens=2, **VIT),
        "average": lambda: loaded("vit_micro_patch8_gap_64", img_size=32, depth=2),
        "bcos": lambda: loaded("bcos_vit_micro_patch8_64", img_size=32, depth=2),
        "cnn": lambda: loaded("resnet20_32"),
        "bcos-cnn": lambda: loaded("bcos_resnet20_32"),
    }
