"""Small loaded models and data for tests of what works on images."""

from __future__ import annotations

from typing import Any

import torch
from small_models import small_cnn, small_vit

from polysem.data.shapes import Shapes
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.models.weights import state_digest

CLASSES = ("a", "b", "c", "d", "e")


def loaded(name: str, **options: Any) -> LoadedModel:
    """Return a small model with its transform; ViTs see 16 × 24 px, CNNs 32 × 48."""
    torch.manual_seed(0)
    vit = "resnet" not in name
    model = small_vit(name, dtype=torch.float32, **options) if vit else small_cnn(
        name, dtype=torch.float32
    )  # fmt: skip
    return LoadedModel(
        model=model,
        transform=Transform(size=(16, 24) if vit else (32, 48), inverse=name.startswith("bcos")),
        classes=CLASSES,
        name=name,
        spec=f"small:{name}",
        sha256=state_digest(model.state_dict()),
    )


def shapes(n: int = 6) -> Shapes:
    return Shapes("test", n=n, size=32)
