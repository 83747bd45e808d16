"""B-cos residual networks and their standard twins, built on timm's `ResNet`.

``bcos_resnet{18,34,50,101,152}`` see images of 224 px; their standard twins are timm's own.
``resnet{20,32,44,56}_32`` and ``bcos_resnet{20,32,44,56}_32`` are the small networks of
arXiv 1512.03385 for 32 px. All are in timm's registry. A B-cos network differs from its twin in
its layers only: every convolution is B-cos, nothing is added by norms, there is no activation
function, pooling averages, and the classifier is a 1×1 convolution *before* the global average,
so that ``logit = Σ W(x) x + logit bias`` (arXiv 2306.10898).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from polysem.errors import CheckpointError, SpecError
from polysem.models.bcos import BcosConv2d, LogitBias
from polysem.models.dropout import drop_channels
from polysem.models.norms import BatchNorm2d, BatchNormUncentered2d, GroupNorm1, PositionNorm2d

__all__ = ["NORMS", "BcosResNet", "BcosSmallResNet", "SmallResNet", "official_resnet"]

#: Norms of B-cos networks by name. Only "batch" adds something (the running mean it subtracts).
NORMS: dict[str, type[nn.Module]] = {
    "batch_uncentered": BatchNormUncentered2d,
    "batch": BatchNorm2d,
    "position": PositionNorm2d,
    "layer": GroupNorm1,
    "none": nn.Identity,
}

# What the official CIFAR-10 configurations call them.
_OFFICIAL_NORMS = {
    "bnu-linear": "batch_uncentered",
    "bn-linear": "batch",
    "pn-linear": "position",
    "ln-linear": "layer",
}


class SmallResNet(ResNet):  # type: ignore[misc]
    """A ResNet for small images: 3×3 stem at full resolution, no pooling, three stages.

    Parameters
    ----------
    block : type
        timm's `BasicBlock` or `Bottleneck`.
    layers : tuple of int
        Blocks in each of the three stages.
    channels : tuple of int
        Width of each stage, the first that of the stem too.
    in_chans : int
        Channels of the input.
    spatial_drop_rate : float
        See :func:`~polysem.models.dropout.drop_channels`.
    **kwargs
        To timm's `ResNet`.
    """

    maxpool: nn.Module

    def __init__(
        self,
        block: type[nn.Module],
        layers: tuple[int, ...],
        *,
        channels: tuple[int, ...] = (16, 32, 64),
        in_chans: int = 3,
        spatial_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # timm's plain stem is 64 wide whatever the stages are; its deep one, replaced below, fits
        super().__init__(
            block,
            layers,
            channels=channels,
            in_chans=in_chans,
            stem_type="deep",
            stem_width=channels[0] // 2,
            **kwargs,
        )
        place = get_device_dtype(self)
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **place)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.layer4 = nn.Sequential()  # timm's forward pass names four stages
        for index, info in enumerate(self.feature_info):
            info["reduction"] = 2 ** max(index - 1, 0)
        drop_channels(self, spatial_drop_rate)


class BcosResNet(ResNet):  # type: ignore[misc]
    """A B-cos ResNet: every layer linear given the input, and nothing added but the logit bias.

    Parameters
    ----------
    block : type
        timm's `BasicBlock` or `Bottleneck`.
    layers : tuple of int
        Blocks in each stage.
    in_chans : int
        6 for ``[x, 1 − x]``.
    norm : str
        A key of `NORMS`.
    b, max_out
        As in `BcosConv2d`; used for every convolution, the classifier too.
    spatial_drop_rate : float
        See :func:`~polysem.models.dropout.drop_channels`.
    **kwargs
        To timm's `ResNet`.

    Raises
    ------
    SpecError
        If `norm` is not known.
    """

    maxpool: nn.Module
    fc: nn.Module
    logit_bias: nn.Module

    def __init__(
        self,
        block: type[nn.Module],
        layers: tuple[int, ...],
        *,
        in_chans: int = 6,
        norm: str = "batch_uncentered",
        b: float = 2,
        max_out: int = 1,
        spatial_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if norm not in NORMS:
            raise SpecError(f"no norm is called {norm!r}; there are {', '.join(NORMS)}")
        super().__init__(
            block,
            layers,
            in_chans=in_chans,
            norm_layer=NORMS[norm],
            act_layer=nn.Identity,
            zero_init_last=False,
            **kwargs,
        )
        self.b, self.max_out = b, max_out
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv2d):
                self.set_submodule(name, self._bcos_conv(module))
        if isinstance(self.maxpool, nn.MaxPool2d):
            self.maxpool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)
        drop_channels(self, spatial_drop_rate)
        self._reset_head()

    def _bcos_conv(self, conv: nn.Conv2d) -> BcosConv2d:
        layer = BcosConv2d(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            stride=(conv.stride[0], conv.stride[1]),
            padding=(int(conv.padding[0]), int(conv.padding[1])),
            dilation=(conv.dilation[0], conv.dilation[1]),
            groups=conv.groups,
            b=self.b,
            max_out=self.max_out,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        # The scale changes no output, only the effective learning rate: that of the official code.
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer

    def _reset_head(self) -> None:
        if self.num_classes > 0:
            place = get_device_dtype(self)
            conv = nn.Conv2d(self.num_features, self.num_classes, 1, bias=False, **place)
            self.fc = self._bcos_conv(conv)
            self.logit_bias = LogitBias(self.num_classes)
        else:
            self.fc, self.logit_bias = nn.Identity(), nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for `num_classes` classes; 0 leaves features."""
        super().reset_classifier(num_classes, global_pool)
        self._reset_head()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify every position of x [image, channel, y, x], then average.

        With `pre_logits` return the averaged features [image, channel] instead.
        """
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        if pre_logits:
            return self.global_pool(x)  # type: ignore[no-any-return]
        return self.logit_bias(self.global_pool(self.fc(x)))  # type: ignore[no-any-return]


class BcosSmallResNet(BcosResNet, SmallResNet):
    """A B-cos ResNet for small images; parameters as in `BcosResNet` and `SmallResNet`."""


_LARGE: dict[int, tuple[type[nn.Module], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
_SMALL: dict[int, tuple[type[nn.Module], tuple[int, ...]]] = {
    depth: (BasicBlock, ((depth - 2) // 6,) * 3) for depth in (20, 32, 44, 56)
}


def _cfg(size: int, *, bcos: bool, crop_pct: float, num_classes: int) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "input_size": (6 if bcos else 3, size, size),
        "crop_pct": crop_pct,
        "interpolation": "bilinear",
        "mean": (0.0,) * 3 if bcos else IMAGENET_DEFAULT_MEAN,
        "std": (1.0,) * 3 if bcos else IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {
        **{
            f"bcos_resnet{depth}": _cfg(224, bcos=True, crop_pct=0.875, num_classes=1000)
            for depth in _LARGE
        },
        **{
            f"bcos_resnet{depth}_32": _cfg(32, bcos=True, crop_pct=1.0, num_classes=10)
            for depth in _SMALL
        },
        **{
            f"resnet{depth}_32": _cfg(32, bcos=False, crop_pct=1.0, num_classes=10)
            for depth in _SMALL
        },
    }
)


def _register(
    name: str, network: type[ResNet], block: type[nn.Module], layers: tuple[int, ...]
) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            network, name, pretrained, block=block, layers=layers, **kwargs
        )
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Return a {network.__name__} with {layers} blocks; keywords go to it."
    globals()[name] = register_model(build)


for _depth, (_block, _layers) in _LARGE.items():
    _register(f"bcos_resnet{_depth}", BcosResNet, _block, _layers)
for _depth, (_block, _layers) in _SMALL.items():
    _register(f"bcos_resnet{_depth}_32", BcosSmallResNet, _block, _layers)
    _register(f"resnet{_depth}_32", SmallResNet, _block, _layers)


def official_resnet(
    name: str, tensors: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Translate the weights of an official B-cos v2 ResNet.

    Parameters
    ----------
    name : str
        Its name in the ``bcos`` package, a function's (``resnet18``, ``cifar10_resnet20``) or a
        configuration's (``resnet_18``, ``resnet_20_bnu-linear-nomaxout``). Where it names no norm
        the weights tell: running statistics mean the uncentred batch norm of the released
        networks, norm weights alone the package's default (position norm), none no norm.
    tensors : mapping of str to Tensor
        The official state dict.

    Returns
    -------
    arch, model_args, state_dict
        For ``timm.create_model(arch, **model_args).load_state_dict(state_dict)``.

    Raises
    ------
    SpecError
        If polysem has no such network.
    CheckpointError
        If the weights have another key layout.
    """
    found = re.fullmatch(
        r"(?:bcos_)?(?:cifar10_)?resnet_?(\d+)(?:_([a-z]+-linear))?(?:-nomaxout)?", name
    )
    depth, norm = (int(found[1]), found[2]) if found else (0, None)
    if depth not in {**_LARGE, **_SMALL} or (norm is not None and norm not in _OFFICIAL_NORMS):
        known = [f"resnet{d}" for d in _LARGE] + [f"cifar10_resnet{d}" for d in _SMALL]
        raise SpecError(
            f"{name!r} is no official ResNet that polysem knows; there are {', '.join(known)}, "
            f"the last four also with {', '.join('_' + n for n in _OFFICIAL_NORMS)}"
        )
    if not {"conv1.linear.weight", "fc.linear.weight"} <= tensors.keys():
        raise CheckpointError(
            f"these are no weights of an official {name}: 'conv1.linear.weight' and "
            f"'fc.linear.weight' are not both there; the first key is {next(iter(tensors))!r}"
        )
    max_out = max(1, tensors["conv1.linear.weight"].shape[0] // (16 if depth in _SMALL else 64))
    model_args = {
        "num_classes": tensors["fc.linear.weight"].shape[0] // max_out,
        "norm": _OFFICIAL_NORMS[norm] if norm else _norm_of(tensors),
        "max_out": max_out,
    }
    state_dict = {key.replace(".linear.weight", ".weight"): v for key, v in tensors.items()}
    return f"bcos_resnet{depth}{'_32' if depth in _SMALL else ''}", model_args, state_dict


def _norm_of(tensors: Mapping[str, Tensor]) -> str:
    if "bn1.running_var" in tensors:
        return "batch_uncentered"
    return "position" if "bn1.weight" in tensors else "none"
