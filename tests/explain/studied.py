"""A small model that knows the colours of drawn shapes by construction, for comparisons."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from polysem.data.scenes import CONCEPTS, PALETTE
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform

COLOURS = torch.tensor([PALETTE[name] for name in CONCEPTS["colour"]]).float() / 255


class ColourModel(nn.Module):
    """Counts the pixels that are close to each colour of the palette: logits [image, colour].

    Every pixel counts by itself, so that what each contributes is known.
    """

    def __init__(self, *, fixed_size: int | None = None) -> None:
        super().__init__()
        self.colours = nn.Parameter(COLOURS.clone())
        self.fixed_size = fixed_size

    def evidence(self, images: Tensor) -> Tensor:
        """Return how close each pixel is to each colour, [image, colour, y, x]."""
        distance = (images[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return torch.exp(-distance / 0.02)

    def forward(self, images: Tensor) -> Tensor:
        if self.fixed_size not in (None, images.shape[2]):
            raise ValueError(f"only images of {self.fixed_size} px")
        return self.evidence(images).mean((2, 3)) * 300


def true_evidence(model: Any, images: Tensor, target: Any) -> Tensor:
    """What each pixel adds to the logit of its image's class."""
    with torch.no_grad():
        evidence = model.evidence(images)
        return evidence[torch.arange(len(images)), target]


def gradient(model: Any, images: Tensor, target: Any) -> Tensor:
    """Input times gradient, by hand."""
    x = images.detach().clone().requires_grad_()
    logits = model(x).gather(1, target[:, None]).sum()
    (slope,) = torch.autograd.grad(logits, x)
    return (slope * x.detach()).sum(1)


def colour_model(*, size: int = 32, fixed: bool = False, **fields: Any) -> LoadedModel:
    build = partial(ColourModel, fixed_size=size if fixed else None)
    values: dict[str, Any] = {
        "model": build().eval(),
        "transform": Transform(size=(size, size), crop_pct=1.0),
        "classes": CONCEPTS["colour"],
        "name": "colours",
        "spec": "colours",
        "sha256": "0" * 64,
        "info": {"recipe": {"loss": "cross_entropy"}},
        "build": partial(_random, build),
    }
    return LoadedModel(**{**values, **fields})


def _random(build: Any) -> nn.Module:
    model: nn.Module = build()
    nn.init.uniform_(model.colours)  # type: ignore[arg-type]
    return model
