"""Maps that explain nothing: what the methods are held against."""

from __future__ import annotations

import numpy as np
import torch
from skimage.filters import sobel
from torch import Tensor, nn

from polysem.explain.forward import explaining
from polysem.explain.methods import Method
from polysem.explain.target import TargetLike

__all__ = ["CONTROLS", "edges", "noise", "uniform"]


def edges(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Strength of the edges in each image, by Sobel's filter on its mean colour channel.

    Knows nothing of the model, so no randomisation changes it; objects have edges, so it may well
    look like an explanation.
    """
    del model, target
    grey = images[:, :3].mean(1).double().cpu().numpy()
    strength = np.stack([sobel(picture) for picture in grey])
    return torch.from_numpy(strength).to(images)


def noise(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Gaussian noise that is another for every class, image and network.

    Drawn from the numbers that the network gives for the images, so that the same question gets
    the same answer, and any other question an unrelated one.
    """
    with explaining(model), torch.inference_mode():
        logits = model(images).double().cpu()
    asked = target if isinstance(target, Tensor) else torch.full((len(images),), target.unit)
    maps = []
    for row, which in zip(logits.numpy(), asked.tolist(), strict=True):
        entropy = [int(word) for word in np.frombuffer(row.tobytes(), np.uint32)]
        rng = np.random.default_rng([*entropy, which])
        maps.append(rng.standard_normal(images.shape[2:]))
    return torch.from_numpy(np.stack(maps)).to(images)


def uniform(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Every pixel counts the same: what chance gives."""
    del model, target
    return images.new_ones(len(images), *images.shape[2:])


#: The controls by the name that tables give them.
CONTROLS: dict[str, Method] = {control.__name__: control for control in (edges, noise, uniform)}
