"""Self-attention for `vit`: timm's, with positions learned inside the softmax, and its B-cos twin.

timm chooses the class and builds the layer; options that timm does not pass are class attributes
of a subclass made by :func:`attention_layer`. The names of the parts (`qkv`, `q_norm`, `proj`, …)
are timm's; what happens between the projections is up to a mixer (`mixers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from timm.layers import Attention
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.attn_scale import FeatScale
from polysem.models.bcos import BcosLinear, DetachableIdentity
from polysem.models.dropout import DropHead
from polysem.models.mixers import Softmax
from polysem.models.positions import PositionBias

__all__ = ["BcosAttention", "Kept", "PositionAttention", "attention_layer"]


class Kept(NamedTuple):
    """Which patches the tokens are, where some were left out.

    Attributes
    ----------
    patches : Tensor
        Numbers [image, token] in row-major order.
    n_patches : int
        How many there were.
    """

    patches: Tensor
    n_patches: int


@cache
def attention_layer(base: type[PositionAttention], **options: Any) -> type[PositionAttention]:
    """Return `base` with other class attributes, as timm takes nothing but a class.

    Parameters
    ----------
    base : type
        :class:`PositionAttention` or :class:`BcosAttention`.
    **options
        Its class attributes: `grid`, `mixer_type`, `mixer_options`, `drop_head_rate`,
        `has_feat_scale`, and of the B-cos one `b` and `max_out`.
    """
    made = {"__module__": base.__module__, "__doc__": base.__doc__, "made_from": (base, options)}
    return type(base.__name__, (base,), {**options, **made})


class PositionAttention(Attention):  # type: ignore[misc]
    """timm's attention over patches, with a :class:`PositionBias` in the logits.

    Takes what timm gives it. With positions there are no class or register tokens: every token is
    a patch.

    Attributes
    ----------
    grid : (int, int) or None
        Rows and columns of patches in training; None leaves the positions out.
    mixer_type : type
        A kind of :class:`~polysem.models.mixers.Softmax`, which `mixer` is made from.
    mixer_options : tuple of (str, value)
        What it is made with, beside the number of heads.
    drop_head_rate : float, "half" or None
        Of :class:`~polysem.models.dropout.DropHead`; None leaves that out.
    has_feat_scale : bool
        Whether a :class:`~polysem.models.attn_scale.FeatScale` comes last.
    """

    q_norm: nn.Module
    k_norm: nn.Module
    proj: nn.Module
    grid: ClassVar[tuple[int, int] | None] = None
    mixer_type: ClassVar[type[Softmax]] = Softmax
    mixer_options: ClassVar[tuple[tuple[str, Any], ...]] = ()
    drop_head_rate: ClassVar[float | Literal["half"] | None] = None
    has_feat_scale: ClassVar[bool] = False
    made_from: ClassVar[tuple[type[PositionAttention], dict[str, Any]] | None] = None

    def __init__(self, dim: int, num_heads: int = 8, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        place = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.position_bias = PositionBias(num_heads, self.grid, **place) if self.grid else None
        mixing: dict[str, Any] = {**dict(self.mixer_options), **place}
        self.mixer = self.mixer_type(num_heads, self.head_dim, **mixing)
        rate = self.drop_head_rate
        self.drop_head = (
            nn.Identity() if rate is None else DropHead(num_heads, rate, device=place["device"])
        )
        width = options.get("dim_out") or dim
        self.feat_scale = FeatScale(width, **place) if self.has_feat_scale else nn.Identity()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        # A class made by attention_layer has no name that pickle could import it by.
        return _blank, self.made_from or (type(self), {}), self.__dict__

    def attention_bias(self, n_tokens: int, kept: Tensor | None = None) -> Tensor | None:
        """Return what is added to ``q kᵀ / √d_head``, or None if nothing.

        Parameters
        ----------
        n_tokens : int
            How many there are, those left out counted.
        kept : Tensor, optional
            Numbers [image, token] of the patches that are left.

        Returns
        -------
        Tensor or None
            [head, query, key]; of kept patches [image, head, query, key].

        Raises
        ------
        SpecError
            If patches are left out that the mixer needs.
        """
        if kept is not None and self.mixer.needs_grid:
            raise SpecError(f"{type(self.mixer).__name__} attention needs every patch in its place")
        bias: Tensor | None = self.mixer.bias(n_tokens)
        if self.position_bias is None:
            return bias
        positions: Tensor = self.position_bias(n_tokens, kept)
        return positions if bias is None else positions + bias

    def forward(
        self, x: Tensor, attn_mask: Tensor | Kept | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend between the tokens x [image, token, d_model].

        Parameters
        ----------
        x : Tensor
        attn_mask : Tensor or Kept, optional
            As in timm, or which patches the tokens are.
        is_causal : bool
            As in timm.

        Raises
        ------
        SpecError
            If causal attention is asked of a layer with positions, or a mask of a mixer that
            takes none.
        """
        bias = self.logit_bias(x.shape[1], attn_mask, is_causal)
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        z = self.mixer(
            self.q_norm(q),
            self.k_norm(k),
            v,
            bias,
            drop=self.attn_drop,
            fused=self.fused_attn,
            masked=is_causal or isinstance(attn_mask, Tensor),
        )
        heads = self.norm(self.drop_head(z).transpose(1, 2).flatten(2))
        if getattr(self, "gate", None) is not None:
            heads = heads * self.gate(x).sigmoid()
        out: Tensor = self.feat_scale(self.proj_drop(self.proj(heads)))
        return out

    def logit_bias(
        self, n_tokens: int, attn_mask: Tensor | Kept | None = None, is_causal: bool = False
    ) -> Tensor | None:
        """Return all that is added to the logits, broadcasting to [image, head, query, key]."""
        if isinstance(attn_mask, Kept):
            return self.attention_bias(attn_mask.n_patches, attn_mask.patches)
        bias = self.attention_bias(n_tokens)
        if is_causal:
            if bias is not None:
                raise SpecError("attention with positions between patches is not causal")
            attn_mask = _causal(n_tokens, self.qkv.weight.device)
        if bias is not None:
            bias = bias[None]  # fused kernels take two or four axes
        if attn_mask is None:
            return bias
        if attn_mask.dtype == torch.bool:
            zero = self.qkv.weight.new_zeros(()) if bias is None else bias
            return torch.where(attn_mask, zero, -math.inf)
        return attn_mask if bias is None else bias + attn_mask


def _causal(n_tokens: int, device: torch.device) -> Tensor:
    return torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=device).tril()


def _blank(base: type[PositionAttention], options: dict[str, Any]) -> PositionAttention:
    layer = attention_layer(base, **options) if options else base  # type: ignore[arg-type]
    return layer.__new__(layer)


class BcosAttention(PositionAttention):
    """Attention of a B-cos transformer (arXiv 2301.08669).

    Queries, keys and values are plain linear maps without bias; the output projection is a
    :class:`~polysem.models.bcos.BcosLinear`. In explanation mode the pattern is constant, as
    queries and keys are cut from the graph. Each projected output has one dynamic factor for all
    heads, so the heads' writes add up only with that factor fixed.

    Attributes
    ----------
    b, max_out
        Of the output projection, as in :class:`~polysem.models.bcos.BcosLinear`.

    Raises
    ------
    SpecError
        If a bias is asked for.
    """

    b: ClassVar[float] = 2
    max_out: ClassVar[int] = 1

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = False,
        proj_bias: bool = False,
        **options: Any,
    ) -> None:
        if qkv_bias or proj_bias:
            raise SpecError("B-cos attention has no biases: qkv_bias and proj_bias must be False")
        super().__init__(dim, num_heads, qkv_bias=False, proj_bias=False, **options)
        self.q_norm = nn.Sequential(self.q_norm, DetachableIdentity())
        self.k_norm = nn.Sequential(self.k_norm, DetachableIdentity())
        self.proj = BcosLinear(
            self.attn_dim,
            options.get("dim_out") or dim,
            b=self.b,
            max_out=self.max_out,
            device=options.get("device"),
            dtype=options.get("dtype"),
        )
