"""Small networks with every parameter drawn at random, for tests of taps and hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

# no two axes of equal length: 2 images, 6 patches, 3 heads of 8, 24 wide, 40 neurons, 5 classes
_SIZES: dict[str, Any] = {
    "img_size": (16, 24), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3,
    "mlp_ratio": 1.7, "num_classes": 5,
}  # fmt: skip

_TIMM = partial(timm.create_model, "vit_tiny_patch16_224", **_SIZES)

VITS = {
    "class_token": _TIMM,
    "registers_layerscale_qknorm": partial(
        _TIMM, reg_tokens=2, init_values=0.5, qk_norm=True, dynamic_img_size=True
    ),
    "average_pooled": partial(_TIMM, class_token=False, global_pool="avg", no_embed_class=True),
    "swiglu_scale_norms": partial(
        _TIMM, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, scale_attn_norm=True,
        scale_mlp_norm=True, pre_norm=True,
    ),
    "post_norm": partial(_TIMM, block_fn=ResPostBlock, init_values=0.5),
    "standard": partial(timm.create_model, "vit_micro_patch8_gap_64", **_SIZES),
    "bcos": partial(timm.create_model, "bcos_vit_micro_patch8_64", **_SIZES),
    "bcos_conv_stem": partial(
        timm.create_model, "bcos_vitc_micro_patch8_64", **_SIZES, stem=(8, 16, 24),
        positions="learn",
    ),
}  # fmt: skip

CNNS = {
    "resnet18": partial(timm.create_model, "resnet18", num_classes=5, channels=(6, 10, 12, 14)),
    "bcos_resnet20_32": partial(timm.create_model, "bcos_resnet20_32", num_classes=5),
}


def small_vit(name: str, *, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return _randomised(partial(VITS[name], **options), dtype)


def small_cnn(name: str, *, dtype: torch.dtype = torch.float64) -> Any:
    return _randomised(CNNS[name], dtype)


def images_for(model: Any) -> Tensor:
    """Return two images of a size and type that the model takes."""
    weight = next(p for p in model.parameters() if p.ndim > 1)
    size = getattr(getattr(model, "patch_embed", None), "img_size", (32, 48))
    channels = model.default_cfg["input_size"][0]
    return torch.rand(2, channels, *size, generator=_generator()).to(weight.dtype)


def noise_like(value: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(value.shape, generator=_generator(seed), dtype=torch.float64).to(value)


def _randomised(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Draw all parameters, as timm's zero biases and unit norms would hide mistakes.

    The same in every process: a derivative may have a kink in one network and none in another.
    """
    generator = _generator(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * noise)
    return model.to(dtype).eval()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
