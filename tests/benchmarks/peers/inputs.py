"""The inputs that every row gets: a network, pictures, and drawn tensors, the same in all.

Only torch and timm are needed here: each environment imports this file.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from sizes import Sizes
from torch import Tensor, nn

__all__ = ["draw", "mlp_sites", "network", "normalise", "pictures", "write"]


def write(folder: Path, sizes: Sizes) -> None:
    """Write the weights and the pictures once, for all environments."""
    torch.manual_seed(0)
    model = _built(sizes)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at 0 and would make units alike
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(model.state_dict(), folder / "vit.pt")
    side = sizes.vit.get("img_size", 224)
    generator = torch.Generator().manual_seed(1)
    # noise of two scales: pictures differ as wholes, not in their grain alone
    coarse = torch.rand(sizes.images, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    grain = torch.rand(sizes.images, 3, side, side, generator=generator)
    torch.save((255 * (0.8 * smooth + 0.2 * grain)).byte(), folder / "pictures.pt")


def network(folder: Path, sizes: Sizes) -> nn.Module:
    """Return the network in evaluation mode."""
    model = _built(sizes)
    model.load_state_dict(torch.load(folder / "vit.pt", weights_only=True))
    return model.eval()


def pictures(folder: Path) -> Tensor:
    """Return uint8 pictures [image, channel, y, x]."""
    found: Tensor = torch.load(folder / "pictures.pt", weights_only=True)
    return found


def normalise(pixels: Tensor) -> Tensor:
    """Return what the network takes."""
    return pixels.float().div_(255).sub_(0.5).div_(0.5)


def draw(task: str, sizes: Sizes) -> tuple[Tensor, ...]:
    """Return the tensors of a task that runs no network, float32.

    Activations are those of sparse units: a few images excite each far more than the rest.
    """
    generator = torch.Generator().manual_seed(2)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    if task == "exemplars":
        return (normal(sizes.searched, sizes.units),)
    if task == "clarity":
        return (normal(sizes.neurons, sizes.top, sizes.dim) + 0.3,)
    n = sizes.paired if task == "monosemanticity" else sizes.described
    activations = torch.rand(n, sizes.neurons, generator=generator) ** 4
    images = normal(n, sizes.dim) + 0.3
    if task == "monosemanticity":
        return activations, images
    texts = normal(sizes.concepts, sizes.dim) + 0.3
    # some images show some concepts, so that labels are more than chance
    images += 2 * texts[torch.randint(sizes.concepts, (n,), generator=generator)]
    return activations, images, texts


def mlp_sites(model: nn.Module) -> list[str]:
    """Return the modules whose output is the neurons of each block, in order."""
    return [f"blocks.{i}.mlp.act" for i in range(len(model.blocks))]


def _built(sizes: Sizes) -> nn.Module:
    return timm.create_model("vit_base_patch16_224", **sizes.vit)
