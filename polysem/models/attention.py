"""Self-attention for `vit`: timm's, with positions learned inside the softmax, and its B-cos twin.

timm chooses the class and builds the layer; options that timm does not pass are class attributes
of a subclass made by :func:`attention_layer`. The names of the parts (`qkv`, `q_norm`, `proj`, …)
are timm's; what happens between the projections is up to a mixer (`mixers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from timm.layers import Attention
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.bcos import BcosLinear, DetachableIdentity
from polysem.models.dropout import DropHead
from polysem.models.mixers import Softmax

__all__ = ["BcosAttention", "PositionAttention", "PositionBias", "attention_layer"]


class PositionBias(nn.Module):
    """A learned number for each head and each offset between query and key on the patch grid.

    Added to attention logits it tells patches where they are relative to each other, without
    adding anything to the patches: a B-cos network stays one matrix W(x). As in Swin
    (arXiv 2103.14030, eq. 4), there in windows. Offsets beyond the trained grid count as the
    farthest one trained, so that a model can read larger square pictures.

    Parameters
    ----------
    n_heads : int
    grid : (int, int)
        Rows and columns of patches in training.

    Attributes
    ----------
    table : nn.Parameter
        [head, y, x] of shape ``(n_heads, 2·rows − 1, 2·columns − 1)``; the middle is offset 0,
        and offsets are those of the query minus those of the key.
    """

    offsets: Tensor

    def __init__(
        self,
        n_heads: int,
        grid: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        shape = (n_heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
        self.table = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        offsets = _offsets(grid, grid, self.table.device)
        self.register_buffer("offsets", offsets, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw small numbers: at first every patch looks almost evenly far."""
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, n_tokens: int) -> Tensor:
        """Return the bias [head, query, key] for so many patches in row-major order.

        Raises
        ------
        SpecError
            If they are neither the trained grid nor a square.
        """
        offsets = self.offsets
        if n_tokens != self.grid[0] * self.grid[1]:
            side = math.isqrt(n_tokens)
            if side * side != n_tokens:
                raise SpecError(
                    f"{n_tokens} patches are neither the trained grid {self.grid} nor a square; "
                    "attention positions need one of them"
                )
            offsets = _offsets((side, side), self.grid, self.table.device)
        bias = self.table.flatten(1).index_select(1, offsets.flatten())
        return bias.view(-1, n_tokens, n_tokens)


def _offsets(grid: tuple[int, int], trained: tuple[int, int], device: torch.device) -> Tensor:
    """Return the index [query, key] into a flattened table of offsets, clamped to the trained."""
    rows, columns = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    y = _difference(rows.flatten(), trained[0] - 1)
    x = _difference(columns.flatten(), trained[1] - 1)
    return (y * (2 * trained[1] - 1) + x).int()


def _difference(place: Tensor, farthest: int) -> Tensor:
    return (place[:, None] - place[None, :]).clamp(-farthest, farthest) + farthest


@cache
def attention_layer(base: type[PositionAttention], **options: Any) -> type[PositionAttention]:
    """Return `base` with other class attributes, as timm takes nothing but a class.

    Parameters
    ----------
    base : type
        :class:`PositionAttention` or :class:`BcosAttention`.
    **options
        Its class attributes: `grid`, `mixer_type`, `mixer_options`, `drop_head_rate`, and of the
        B-cos one `b` and `max_out`.
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
    """

    q_norm: nn.Module
    k_norm: nn.Module
    proj: nn.Module
    grid: ClassVar[tuple[int, int] | None] = None
    mixer_type: ClassVar[type[Softmax]] = Softmax
    mixer_options: ClassVar[tuple[tuple[str, Any], ...]] = ()
    drop_head_rate: ClassVar[float | Literal["half"] | None] = None
    made_from: ClassVar[tuple[type[PositionAttention], dict[str, Any]] | None] = None

    def __init__(self, dim: int, num_heads: int = 8, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        place = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.position_bias = PositionBias(num_heads, self.grid, **place) if self.grid else None
        self.mixer = self.mixer_type(num_heads, **dict(self.mixer_options), **place)
        rate = self.drop_head_rate
        self.drop_head = nn.Identity() if rate is None else DropHead(num_heads, rate)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        # A class made by attention_layer has no name that pickle could import it by.
        return _blank, self.made_from or (type(self), {}), self.__dict__

    def attention_bias(self, n_tokens: int) -> Tensor | None:
        """Return what is added to ``q kᵀ / √d_head``, [head, query, key], or None if nothing."""
        biases = [self.mixer.bias(n_tokens)]
        if self.position_bias is not None:
            biases.append(self.position_bias(n_tokens))
        given = [bias for bias in biases if bias is not None]
        return sum(given[1:], start=given[0]) if given else None

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend between the tokens x [image, token, d_model]; masks as in timm.

        Raises
        ------
        SpecError
            If causal attention is asked of a layer with positions.
        """
        bias = self._logit_bias(x, attn_mask, is_causal)
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        z = self.mixer(
            self.q_norm(q),
            self.k_norm(k),
            v,
            bias,
            drop=self.attn_drop,
            fused=self.fused_attn,
            masked=is_causal or attn_mask is not None,
        )
        heads = self.norm(self.drop_head(z).transpose(1, 2).flatten(2))
        if getattr(self, "gate", None) is not None:
            heads = heads * self.gate(x).sigmoid()
        out: Tensor = self.proj_drop(self.proj(heads))
        return out

    def _logit_bias(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor | None:
        """Return all that is added to the logits, broadcasting to [image, head, query, key]."""
        bias, n_tokens = self.attention_bias(x.shape[1]), x.shape[1]
        if is_causal:
            if bias is not None:
                raise SpecError("attention with positions between patches is not causal")
            attn_mask = x.new_ones(n_tokens, n_tokens, dtype=torch.bool).tril()
        if bias is not None:
            bias = bias[None]  # fused kernels take two or four axes
        if attn_mask is None:
            return bias
        if attn_mask.dtype == torch.bool:
            zero = x.new_zeros(()) if bias is None else bias
            return torch.where(attn_mask, zero, -math.inf)
        return attn_mask if bias is None else bias + attn_mask


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
