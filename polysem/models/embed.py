"""From images to patch tokens, the first step of `vit`: patches or a stem of convolutions.

Positions that are added to tokens are here too; those inside attention are in `attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from timm.layers import PatchEmbed
from torch import Tensor, nn

from polysem.errors import SpecError

__all__ = ["PatchLinear", "PatchLinearEmbed", "SincosPositions", "conv_stem", "sincos_positions"]

Layer = Callable[..., nn.Module]


def conv_stem(
    channels: int, widths: Sequence[int], *, conv: Layer, norm: Layer, act: Layer, **place: Any
) -> nn.Sequential:
    """Return 3×3 convolutions with padding 1, each followed by `norm` and `act`.

    A convolution that widens halves the picture, as in the official B-cos ViT-C; stems instead
    of patches are from arXiv 2106.14881.

    Parameters
    ----------
    channels : int
        Of the image.
    widths : sequence of int
        Output channels of the convolutions.
    conv, norm, act : callable
        ``conv(in, out, kernel_size=, stride=, padding=)``, ``norm(channels)``, ``act()``.
    **place
        `device` and `dtype`.
    """
    stages = []
    for width in widths:
        stride = 2 if width > channels else 1
        stage = {
            "conv": conv(channels, width, kernel_size=3, stride=stride, padding=1, **place),
            "norm": norm(width, **place),
            "act": act(),
        }
        stages.append(nn.Sequential())
        for name, module in stage.items():
            stages[-1].add_module(name, module)
        channels = width
    return nn.Sequential(*stages)


class PatchLinear(nn.Module):
    """One linear layer on each patch of what the stem makes of an image.

    Parameters
    ----------
    stem : nn.Module
        Takes and gives [image, channel, y, x]; an identity if patches are cut from the image.
    patch_size : (int, int)
        Of the patches cut from the stem's output.
    linear : nn.Module
        Maps the pixels of a patch, ordered (y, x, channel), to d_model.
    """

    def __init__(self, stem: nn.Module, patch_size: tuple[int, int], linear: nn.Module) -> None:
        super().__init__()
        self.stem, self.patch_size, self.linear = stem, patch_size, linear

    def forward(self, images: Tensor) -> Tensor:
        """Return [image, d_model, y, x], a view with d_model innermost in memory."""
        height, width = self.patch_size
        patches = rearrange(
            self.stem(images),
            "image channel (y py) (x px) -> image y x (py px channel)",
            py=height,
            px=width,
        )
        tokens: Tensor = self.linear(patches)
        return rearrange(tokens, "image y x d_model -> image d_model y x")


class PatchLinearEmbed(PatchEmbed):  # type: ignore[misc]
    """timm's patch embedding with a :class:`PatchLinear` in place of its convolution.

    Parameters
    ----------
    linear, conv, norm, act : callable
        The layers of the twin that is built.
    stem : sequence of int
        Widths of :func:`conv_stem`, which must shrink images by `patch_size`; empty for none.
    **options
        timm's; whether there are biases is up to the layers.

    Raises
    ------
    SpecError
        If the image does not divide into patches, or the stem does not shrink it by
        `patch_size`.
    """

    def __init__(
        self,
        *,
        linear: Layer,
        conv: Layer,
        norm: Layer,
        act: Layer,
        stem: Sequence[int] = (),
        in_chans: int = 3,
        embed_dim: int = 768,
        **options: Any,
    ) -> None:
        super().__init__(in_chans=1, embed_dim=1, **options)  # its proj is replaced
        if any(side % patch for side, patch in zip(self.img_size, self.patch_size, strict=True)):
            raise SpecError(
                f"img_size {self.img_size} does not divide into patches of {self.patch_size}"
            )
        place = {"device": options.get("device"), "dtype": options.get("dtype")}
        layers = conv_stem(in_chans, stem, conv=conv, norm=norm, act=act, **place)
        shrink = 2 ** sum(out > into for into, out in zip((in_chans, *stem), stem, strict=False))
        if stem and self.patch_size != (shrink, shrink):
            raise SpecError(
                f"a stem of widths {tuple(stem)} on {in_chans} channels shrinks images by "
                f"{shrink}, which must be the patch size, here {self.patch_size}"
            )
        patch_size = (1, 1) if stem else self.patch_size
        channels = stem[-1] if stem else in_chans
        pixels = patch_size[0] * patch_size[1] * channels
        self.proj = PatchLinear(layers, patch_size, linear(pixels, embed_dim, **place))


def sincos_positions(grid: tuple[int, int], d_model: int, *, device: torch.device) -> Tensor:
    """Return fixed positions [token, d_model] of patches in row-major order, in [−1, 1].

    ``[sin xω, cos xω, sin yω, cos yω]`` with ``ω_i = 10000^(−i / (d_model/4 − 1))``, as in
    SimpleViT (arXiv 2205.01580) and the official B-cos ViTs.

    Raises
    ------
    SpecError
        If `d_model` is no multiple of 4, or only 4.
    """
    if d_model % 4 or d_model == 4:
        raise SpecError(f"sincos positions need a width of 8, 12, 16, …, got {d_model}")
    quarter = d_model // 4
    omega = 1 / 10_000 ** (torch.arange(quarter, device=device) / (quarter - 1))
    y, x = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    y, x = (place.flatten()[:, None] * omega for place in (y, x))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


class SincosPositions(nn.Module):
    """Add :func:`sincos_positions` to tokens.

    To a B-cos network they are a bias: ``Σ W(x) x`` misses the logit by what reaches it along
    the positions, ``Σ p ∂logit/∂token`` over the tokens that this module gives.
    """

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens [image, token, d_model] of a grid with the positions added."""
        positions = sincos_positions(grid, tokens.shape[-1], device=tokens.device)
        return tokens + positions.to(tokens.dtype)
