"""From a trained standard network to one that becomes B-cos by fine-tuning: B-cosification.

`bcosify` swaps the layers of a timm vision transformer or ResNet for those of `bcosified`, which
keep its weights, and doubles its first layer for the input ``[x, 1 − x]``. What comes out computes
the function that went in; from there its :class:`~polysem.models.conversion.Conversion` leads to a
B-cos network. Checkpoints of such networks are written by `bcosify_checkpoint`.
B-cosification: Transforming Deep Neural Networks to be Inherently Interpretable, arXiv 2411.00715.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Attention, DropPath, LayerScale, Mlp, PatchEmbed, SelectAdaptivePool2d
from timm.layers import LayerNorm as TimmLayerNorm
from timm.models import vision_transformer as timm_vit
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from polysem.errors import SpecError
from polysem.models.attention import PositionAttention
from polysem.models.bcos import DetachableIdentity
from polysem.models.bcosified import (
    BcosifiedBatchNorm2d,
    BcosifiedConv2d,
    BcosifiedLayerNorm,
    BcosifiedLinear,
    BcosifiedLogitBias,
    BcosifiedPool,
    BcosifiedQkv,
    DetachableGate,
    InverseNorm,
)
from polysem.models.cnn import BcosResNet, SmallResNet
from polysem.models.conversion import Conversion
from polysem.models.dropout import PatchDropout, SpatialDropout
from polysem.models.embed import PatchLinear, PatchLinearEmbed
from polysem.models.lipsformer import PostNormBlock
from polysem.models.vit import VisionTransformer

__all__ = ["BcosifiedResNet", "BcosifiedVit", "bcosify"]


def bcosify(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    b: float = 2,
    share: float = 0.0,
) -> nn.Module:
    """Return a copy of a standard network that can be fine-tuned into a B-cos network.

    The copy takes ``[x, 1 − x]`` of images x in [0, 1]. Steps that keep the function, to rounding:
    the input with its normalisation inside (:class:`~polysem.models.bcosified.InverseNorm`), the
    first layer's weights ``[W, −W] / 2``, and, in a ResNet, the classifier applied to every place
    of the map before the average. Steps that change it, all of them in proportion to `share` and
    none at 0: B, the biases and the means that batch norms subtract, max-pooling, and a logit bias
    of ``−ln(C − 1)``. ReLU, GELU and the like stay, queries, keys and values stay linear.

    At share 1 the network is one matrix in explanation mode: ``logit = Σ W(x) x`` plus the logit
    bias and what reaches the logit from positions, class and register tokens that are added.

    Parameters
    ----------
    model : nn.Module
        timm's (or polysem's standard) `VisionTransformer`, or a `ResNet` of plain blocks, with 3
        input channels. It is not changed.
    mean, std : sequence of float, optional
        With which the model's input was normalised; by default what timm says of the model.
    b : float
        The exponent B of the B-cos layers.
    share : float
        Of the conversion that is done now: 0 keeps the function, 1 is the B-cos network of the
        paper, which needs fine-tuning before it is of use.

    Raises
    ------
    SpecError
        If the model has a part for which there is no B-cos form; the part is named.

    Examples
    --------
    >>> import timm
    >>> from polysem.models.bcos import add_inverse
    >>> plain = timm.create_model("resnet20_32").eval()
    >>> images = torch.rand(2, 3, 32, 32)
    >>> mean, std = (torch.tensor(plain.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    >>> same = bcosify(plain)(add_inverse(images))
    >>> bool(torch.allclose(same, plain((images - mean) / std), atol=1e-5))
    True
    """
    _require_supported(model)
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    mean = tuple(config.get("mean", IMAGENET_DEFAULT_MEAN)) if mean is None else tuple(mean)
    std = tuple(config.get("std", IMAGENET_DEFAULT_STD)) if std is None else tuple(std)
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise SpecError(f"mean and std must be of 3 colours, std positive; got {mean} and {std}")
    conversion = Conversion(share, b)
    made: Any = copy.deepcopy(model)
    _double_input(made, InverseNorm(mean, std).to(next(made.parameters()).device))
    if isinstance(made, ResNet):
        made.fc = _on_maps(made.fc)
    _convert_children(made, "", conversion)
    made.conversion = conversion
    if isinstance(made, ResNet):
        made.__class__ = BcosifiedResNet
        made.logit_bias = BcosifiedLogitBias(made.num_classes, conversion)
    else:
        if type(made) is timm_vit.VisionTransformer:
            made.__class__ = BcosifiedVit
        made.make_head = partial(_new_head, conversion)
        if made.num_classes > 0:
            made.head = _with_bias(made.head, conversion)
    _describe(made, config)
    return made  # type: ignore[no-any-return]


class BcosifiedVit(timm_vit.VisionTransformer):  # type: ignore[misc]
    """timm's vision transformer after `bcosify`."""

    head: Any
    make_head: Callable[..., nn.Module]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head of the same kind on the model; of 0 classes, none."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes > 0:
            plain = self.head.weight
            self.head = self.make_head(
                self.embed_dim, num_classes, device=plain.device, dtype=plain.dtype
            ).train(self.training)


class BcosifiedResNet(BcosResNet):
    """timm's ResNet after `bcosify`."""

    conversion: Conversion

    def _reset_head(self) -> None:
        if self.num_classes > 0:
            self.fc = BcosifiedConv2d(_on_maps(self.fc), self.conversion)
        self.logit_bias = BcosifiedLogitBias(self.num_classes, self.conversion)


def _on_maps(linear: Any) -> Any:
    """Return a classifier as a 1×1 convolution, for every place of a map; none stays none."""
    if isinstance(linear, nn.Identity):
        return linear
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None])
    conv.bias = linear.bias
    return conv.train(linear.training)


def _with_bias(linear: BcosifiedLinear, conversion: Conversion) -> nn.Module:
    head = nn.Sequential()
    head.add_module("linear", linear)
    head.add_module("bias", BcosifiedLogitBias(linear.out_features, conversion))
    return head


def _new_head(conversion: Conversion, d_model: int, classes: int, **place: Any) -> nn.Module:
    return _with_bias(BcosifiedLinear(nn.Linear(d_model, classes, **place), conversion), conversion)


def _require_supported(model: nn.Module) -> None:
    kinds = (timm_vit.VisionTransformer, VisionTransformer, ResNet, SmallResNet)
    if type(model) not in kinds:
        raise SpecError(
            f"{type(model).__name__} cannot be B-cosified: polysem converts timm's "
            "VisionTransformer, its own standard one, and ResNet"
        )
    pool: Any = model.global_pool
    pool = pool.pool_type if isinstance(pool, SelectAdaptivePool2d) else pool
    if pool not in ("avg", "token"):
        raise SpecError(f"a model with global_pool={pool!r} cannot be B-cosified; avg or token can")
    channels = getattr(model, "in_chans", None) or _first_layer(model).weight.shape[1]
    if channels == 6:
        raise SpecError("the model takes 6 channels, so it is B-cos or B-cosified already")
    if channels != 3:
        raise SpecError(f"only models of 3 input channels can be B-cosified, this has {channels}")


def _first_layer(model: Any) -> Any:
    """Return the layer that sees the pixels: a convolution, or the linear layer of patches."""
    start = model.conv1 if isinstance(model, ResNet) else model.patch_embed.proj
    convolutions = [module for module in start.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[0] if convolutions else start.linear


def _double_input(model: Any, norm: InverseNorm) -> None:
    """Give the first layer the weights ``[W, −W] / 2`` and normalise what it sees."""
    first = _first_layer(model)
    weight = first.weight.detach()
    if isinstance(first, nn.Conv2d):
        if first.groups != 1:
            raise SpecError(f"{first} cannot be B-cosified: it sees its colours in groups")
        doubled = torch.cat([weight, -weight], dim=1)
        first.in_channels *= 2
    else:  # the pixels of a patch lie in order (y, x, channel)
        pixels = weight.unflatten(1, (-1, 3))
        doubled = torch.cat([pixels, -pixels], dim=2).flatten(1)
        first.in_features *= 2
    first.weight = nn.Parameter(doubled / 2)
    if isinstance(model, ResNet):
        model.conv1 = _after(norm, model.conv1)
    elif isinstance(model.patch_embed.proj, PatchLinear):
        model.patch_embed.proj.stem = _after(norm, model.patch_embed.proj.stem)
    else:
        model.patch_embed.proj = _after(norm, model.patch_embed.proj)
    model.in_chans = 6


def _after(norm: InverseNorm, layer: nn.Module) -> nn.Sequential:
    both = nn.Sequential()
    both.add_module("normalize", norm)
    both.add_module("layer", layer)
    return both


#: Layers that have a B-cos form, and that form.
_FORMS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: BcosifiedLinear,
    nn.Conv2d: BcosifiedConv2d,
    nn.LayerNorm: BcosifiedLayerNorm,
    TimmLayerNorm: BcosifiedLayerNorm,
    nn.BatchNorm2d: BcosifiedBatchNorm2d,
    nn.MaxPool2d: BcosifiedPool,
}
#: Containers whose parts are converted, and layers that are linear (given their input) already.
_KEPT: tuple[type[nn.Module], ...] = (
    nn.Sequential, nn.Identity, nn.Dropout, nn.AvgPool2d, nn.ReLU, SelectAdaptivePool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten, Mlp,
    LayerScale, DropPath, PatchEmbed, PatchLinearEmbed, PatchLinear, InverseNorm, timm_vit.Block,
    timm_vit.ResPostBlock, timm_vit.PatchDropout, BasicBlock, Bottleneck, PostNormBlock,
    PatchDropout, SpatialDropout, nn.Dropout2d,
)  # fmt: skip
#: Activation functions x g(x), by class name (timm and torch each have their own classes).
_GATES = {"GELU", "GELUTanh", "QuickGELU", "SiLU", "Swish", "Mish", "HardSwish", "Hardswish"}


def _convert_children(module: nn.Module, path: str, conversion: Conversion) -> None:
    for name, child in list(module.named_children()):
        place = f"{path}.{name}" if path else name
        new = _converted(child, place, conversion)
        if new is not child:
            setattr(module, name, new)


def _converted(layer: nn.Module, path: str, conversion: Conversion) -> nn.Module:
    """Return a layer's B-cos form, or the layer itself with its parts converted."""
    kind = type(layer)
    if kind in _FORMS:
        if isinstance(layer, (nn.LayerNorm, nn.BatchNorm2d)) and layer.weight is None:
            raise SpecError(f"{path} cannot be B-cosified: it is a norm without weights")
        return _FORMS[kind](layer, conversion)
    if kind.__name__ in _GATES:
        return DetachableGate(layer)
    if isinstance(layer, Attention):
        _convert_attention(layer, path, conversion)
    elif kind in _KEPT:
        _convert_children(layer, path, conversion)
    else:
        raise SpecError(f"{path} is a {kind.__name__}, which has no B-cos form in polysem")
    return layer


def _convert_attention(layer: Any, path: str, conversion: Conversion) -> None:
    """Convert what carries values; queries and keys become constants of explanation mode."""
    known = type(layer) is Attention or isinstance(layer, PositionAttention)
    if not known or layer.gate is not None:
        what = type(layer).__name__ if not known else "gated attention"
        raise SpecError(f"{path} is {what}, which has no B-cos form in polysem")
    layer.qkv = BcosifiedQkv(layer.qkv, conversion)
    layer.q_norm = nn.Sequential(layer.q_norm, DetachableIdentity())
    layer.k_norm = nn.Sequential(layer.k_norm, DetachableIdentity())
    layer.norm = _converted(layer.norm, f"{path}.norm", conversion)
    layer.proj = _converted(layer.proj, f"{path}.proj", conversion)


def _describe(model: Any, config: dict[str, Any]) -> None:
    """Say in timm's terms what the model takes now, and where its first and last layers are."""
    size = tuple(config.get("input_size", (3, 224, 224)))
    model.pretrained_cfg = model.default_cfg = {
        **config,
        "input_size": (6, *size[1:]),
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "classifier": "fc" if isinstance(model, ResNet) else "head.linear",
        "first_conv": "conv1" if isinstance(model, ResNet) else "patch_embed.proj",
    }
