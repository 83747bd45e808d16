"""The layers that `vit` is built from: the standard set and its B-cos twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from timm.layers import Mlp
from torch import nn

from polysem.errors import SpecError
from polysem.models.attention import BcosAttention, PositionAttention
from polysem.models.bcos import BcosConv2d, BcosLinear, LogitBias
from polysem.models.norms import GroupNorm1, LayerNorm

__all__ = ["STANDARD", "BcosMlp", "Layers", "bcos_layers"]

Layer = Callable[..., nn.Module]


@dataclass(frozen=True)
class Layers:
    """What a vision transformer is built from; twins share everything else.

    Attributes
    ----------
    linear, conv, norm, norm2d, act : callable
        Make the layers of the patch embedding and the norms, with torch's arguments.
    mlp : callable
        timm's `mlp_layer`.
    attention : type
        timm's `attn_layer`; `attention_options` are its class attributes.
    head : callable
        ``head(d_model, classes)``.
    biases : bool
        Of attention and MLP.
    """

    linear: Layer
    conv: Layer
    norm: Layer
    norm2d: Layer
    act: type[nn.Module]
    mlp: Layer
    attention: type[PositionAttention]
    head: Layer
    biases: bool
    attention_options: dict[str, Any] = field(default_factory=dict)


STANDARD = Layers(
    linear=nn.Linear,
    conv=nn.Conv2d,
    norm=nn.LayerNorm,
    norm2d=partial(nn.GroupNorm, 1),
    act=nn.GELU,
    mlp=Mlp,
    attention=PositionAttention,
    head=nn.Linear,
    biases=True,
)


def bcos_layers(*, b: float = 2, max_out: int = 1) -> Layers:
    """Return the layers of a B-cos transformer; both options go to every B-cos layer."""
    options: dict[str, Any] = {"b": b, "max_out": max_out}
    return Layers(
        linear=partial(BcosLinear, **options),
        conv=partial(BcosConv2d, **options),
        norm=LayerNorm,
        norm2d=GroupNorm1,
        act=nn.Identity,
        mlp=partial(BcosMlp, **options),
        attention=BcosAttention,
        attention_options=options,
        head=partial(_bcos_head, **options),
        biases=False,
    )


class BcosMlp(Mlp):  # type: ignore[misc]
    """timm's two-layer perceptron of B-cos layers, whose units are signed if `act` is identity.

    Parameters
    ----------
    in_features, hidden_features, **options
        timm's; `bias` must be false.
    b, max_out
        As in :class:`~polysem.models.bcos.BcosLinear`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        *,
        b: float = 2,
        max_out: int = 1,
        bias: bool = False,
        **options: Any,
    ) -> None:
        if bias:
            raise SpecError("a B-cos MLP has no biases: bias must be False")
        super().__init__(in_features, hidden_features, bias=False, **options)
        place: dict[str, Any] = {key: options.get(key) for key in ("device", "dtype")}
        for name in ("fc1", "fc2"):
            plain = getattr(self, name)
            layer = BcosLinear(plain.in_features, plain.out_features, b=b, max_out=max_out, **place)
            setattr(self, name, layer)


def _bcos_head(d_model: int, classes: int, **options: Any) -> nn.Module:
    head = nn.Sequential()
    head.add_module("linear", BcosLinear(d_model, classes, **options))
    head.add_module("bias", LogitBias(classes))
    return head
