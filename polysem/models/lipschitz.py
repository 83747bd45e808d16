"""How steep a network can get: an upper bound on its Lipschitz constant, and the slope at an image.

A network of LipsFormer's parts (arXiv 2304.09856) changes its logits by at most `lipschitz_bound`
times what its image changes by, in Euclidean norms, whatever the image. The bound is a product
over layers and says nothing about how far it is from the truth; `jacobian_norm` measures the slope
at one image, which is never above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from polysem.errors import SpecError
from polysem.models.attention import PositionAttention
from polysem.models.bcos import BcosLinear, DetachableIdentity, LogitBias
from polysem.models.cosine import Cosine
from polysem.models.embed import PatchLinear
from polysem.models.lipsformer import PostNormBlock
from polysem.models.norms import CenterNorm
from polysem.models.vit import VisionTransformer

__all__ = [
    "Steepness",
    "attention_bound",
    "block_bound",
    "jacobian_norm",
    "lipschitz_bound",
    "steepness",
]

#: The largest slope of activation functions by class name, rounded up.
_SLOPES = {"Identity": 1.0, "ReLU": 1.0, "GELU": 1.12891, "GELUTanh": 1.129, "SiLU": 1.09984}


def lipschitz_bound(model: nn.Module, *, n_tokens: int | None = None) -> float:
    """Return an upper bound on how much faster logits can change than the model's input.

    ``‖f(a) − f(b)‖ ≤ bound · ‖a − b‖`` for any two inputs, as the model takes them (normalised; of
    a B-cos model all six channels), in evaluation mode. The product of the bounds of its parts:
    largest singular values of linear layers; (2B − 1) times that for B-cos layers; `block_bound`
    for blocks; ``1 / √tokens`` for the average over tokens. Positions, wherever they are added, do
    not matter.

    Parameters
    ----------
    model : nn.Module
        polysem's `VisionTransformer` with ``attention="cosine"`` and ``center_norm``, no stem of
        convolutions, on whatever device.
    n_tokens : int, optional
        Patches of the images; by default those that it was built for.

    Raises
    ------
    SpecError
        If a part has no bound (softmax attention of dot products, layer norm); it is named.

    Notes
    -----
    The bound grows with depth, with ``1 / √ε`` of the attention, and with training. It is a
    guarantee, not an estimate: measured slopes are usually orders of magnitude smaller.
    """
    if not isinstance(model, VisionTransformer):
        raise SpecError(
            f"{type(model).__name__} has no Lipschitz bound in polysem: it is for its own "
            "VisionTransformer with attention='cosine' and center_norm"
        )
    if model.global_pool != "avg" or model.num_prefix_tokens:
        raise SpecError("a Lipschitz bound needs global_pool='avg' and no register tokens")
    n_tokens = math.prod(model.grid) if n_tokens is None else n_tokens
    bound = _of(model.patch_embed.proj, "patch_embed.proj") * _of(model.norm_pre, "norm_pre")
    for layer, block in enumerate(model.blocks):
        bound *= block_bound(block, n_tokens, name=f"blocks.{layer}")
    bound *= _of(model.norm, "norm") / math.sqrt(n_tokens) * _of(model.fc_norm, "fc_norm")
    return bound * _of(model.head, "head")


def block_bound(block: Any, n_tokens: int, *, name: str = "block") -> float:
    """Return the bound of one transformer block on so many tokens.

    Each of its branches adds ``α ⊙ f(x)`` to x, α the weights of the residual: at most
    ``1 + max|α| · Lip f``. The norm stretches what the branch reads, or with norms after the sums
    the sum.

    Raises
    ------
    SpecError
        If a part has no bound.
    """
    bound = 1.0
    attention = attention_bound(block.attn, n_tokens, name=f"{name}.attn")
    for number, branch in ((1, attention), (2, _of(block.mlp, f"{name}.mlp"))):
        scale = _of(getattr(block, f"ls{number}"), f"{name}.ls{number}")
        norm = _of(getattr(block, f"norm{number}"), f"{name}.norm{number}")
        if isinstance(block, PostNormBlock):
            bound *= norm * (1 + scale * branch)
        else:
            bound *= 1 + scale * branch * norm
    return bound


def attention_bound(attn: Any, n_tokens: int, *, name: str = "attn") -> float:
    r"""Return the bound of a layer of scaled cosine attention on N tokens.

    Normalising ``u / √(‖u‖² + ε)`` has slope at most ``ε^−½``, and normalised rows are shorter
    than 1. A row of what a head writes is ``ν Σ_j P_j v̂_j``. Its change through the logits is ν
    times the covariance, under P, of the logits' change with the values, so no longer than ν times
    the standard deviation of ``τ (dq̂ · k̂_j + q̂ · dk̂_j)``; its change through the values is an
    average of theirs, and over all rows ``‖P‖₂ ≤ √N``. Together, in Frobenius norms,

    ``L_h = ν ε^−½ (τ (‖W_Q‖ + √N ‖W_K‖) + √N ‖W_V‖)``.

    Bounding the softmax by its slope ½ and the values by ``‖V̂‖ ≤ √N`` instead gives
    ``τ N / 2 · (‖W_Q‖ + ‖W_K‖)`` in the place of the first term, better for few tokens; the
    smaller of the two counts. Heads write side by side, ``√(Σ_h L_h²)``, and the output
    projection multiplies by its own bound.

    Raises
    ------
    SpecError
        If the layer's mixer has no bound: it is not cosine attention with normalised values.
    """
    mixer = getattr(attn, "mixer", None)
    if not isinstance(attn, PositionAttention) or not isinstance(mixer, Cosine):
        kind = type(mixer if mixer is not None else attn).__name__
        raise SpecError(
            f"{name} has no Lipschitz bound: {kind} attention can get arbitrarily steep"
        )
    if not mixer.normalize_values:
        raise SpecError(f"{name} has no Lipschitz bound: its values are not normalised")
    for part in ("q_norm", "k_norm"):
        _of(getattr(attn, part), f"{name}.{part}")
    root = math.sqrt(n_tokens)
    total = 0.0
    for q, k, v in zip(*_by_head(attn), strict=True):
        logits = min(q + root * k, n_tokens / 2 * (q + k))
        total += (mixer.nu / math.sqrt(mixer.eps) * (mixer.tau * logits + root * v)) ** 2
    after = [getattr(attn, part, None) for part in ("norm", "proj", "feat_scale")]
    names = (f"{name}.{part}" for part in ("norm", "proj", "feat_scale"))
    bounds = (_of(part, at) for part, at in zip(after, names, strict=True) if part is not None)
    return math.sqrt(total) * math.prod(bounds)


def _by_head(attn: PositionAttention) -> list[list[float]]:
    """Return the spectral norms of the heads' query, key and value matrices."""
    heads = attn.qkv.weight.unflatten(0, (3, attn.num_heads, attn.head_dim))
    norms: list[list[float]] = torch.linalg.matrix_norm(heads.detach().double(), ord=2).tolist()
    return norms


def _of(module: nn.Module, name: str) -> float:
    """Return the bound of a layer on each token by itself."""
    if isinstance(module, (nn.Dropout, DetachableIdentity, LogitBias)):
        return 1.0  # of evaluation mode; constants that are added do not matter
    if isinstance(module, nn.Linear):
        return _spectral_norm(module.weight)
    if type(module) is BcosLinear:
        # J = B diag(|c|^(B−1)) Ŵ − (B−1) s x̂ᵀ with s = c |c|^(B−1), ‖s‖ ≤ ‖Ŵ‖; see bcos_scale
        slack = 1.0 if module.b in (1, 2) else (1 + 1e-6) ** (module.b - 1)
        return (2 * module.b - 1) * slack * _spectral_norm(module.unit_weight())
    if isinstance(module, CenterNorm):
        return module.stretch * float(module.weight.detach().abs().max())
    if isinstance(module, LayerScale):
        return float(module.gamma.detach().abs().max())
    if isinstance(module, PatchLinear) and not len(module.stem):  # type: ignore[arg-type]
        return _of(module.linear, f"{name}.linear")
    if isinstance(module, Mlp):
        parts = ("fc1", "act", "norm", "fc2")
        return math.prod(_of(getattr(module, part), f"{name}.{part}") for part in parts)
    if isinstance(module, nn.Sequential):
        return math.prod(_of(part, f"{name}.{at}") for at, part in module.named_children())
    if type(module).__name__ in _SLOPES:
        return _SLOPES[type(module).__name__]
    raise SpecError(f"{name} has no Lipschitz bound in polysem: it is a {type(module).__name__}")


def _spectral_norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double(), ord=2))


def jacobian_norm(
    function: Callable[[Tensor], Tensor], x: Tensor, *, steps: int = 30, seed: int = 0
) -> float:
    """Return the largest singular value of the Jacobian of a function at x: its slope there.

    By power iteration on ``JᵀJ``, which approaches it from below.

    Parameters
    ----------
    function : callable
        From a tensor to a tensor, without randomness.
    x : Tensor
        Where; float64 for more than a few digits.
    steps : int
        Of the iteration.
    seed : int
        Of the direction that it begins with.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([3.0, 1.0]))
    >>> round(jacobian_norm(lambda x: matrix @ x, torch.zeros(2)), 4)
    3.0
    """
    x = x.detach()
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    norm = 0.0
    with sdpa_kernel(SDPBackend.MATH):  # the backward pass of fused kernels has no derivative
        value, back = cast("Any", torch.func.vjp(function, x))
        # u → Jᵀu is linear, and its own derivative backwards is v → Jv
        _, ahead = cast("Any", torch.func.vjp(lambda u: back(u)[0], torch.zeros_like(value)))
        for _ in range(steps):
            (change,) = ahead(direction / direction.norm().clamp_min(torch.finfo(x.dtype).tiny))
            norm = float(change.detach().norm())
            (direction,) = back(change)
    return norm


@dataclass(frozen=True)
class Steepness:
    """How steep a part of a network can get and how steep it was found to be.

    Attributes
    ----------
    part : str
        A block, its attention, or "network".
    bound : float
        Of any input.
    measured : float
        The largest of the slopes at the images.
    """

    part: str
    bound: float
    measured: float


def steepness(model: Any, images: Tensor, *, steps: int = 20) -> list[Steepness]:
    """Measure the slopes of a network, its blocks and their attention at images, beside the bounds.

    Parameters
    ----------
    model : nn.Module
        As for :func:`lipschitz_bound`, in evaluation mode.
    images : Tensor
        [image, channel, y, x] as the model takes them; parts are measured at what reaches them.
    steps : int
        Of each power iteration.

    Raises
    ------
    SpecError
        If a part has no bound.
    """
    network = lipschitz_bound(model)
    with torch.no_grad():
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    n_tokens = tokens.shape[1]
    found = []
    for layer, block in enumerate(model.blocks):
        name = f"blocks.{layer}"
        bounds = (
            block_bound(block, n_tokens, name=name),
            attention_bound(block.attn, n_tokens, name=f"{name}.attn"),
        )
        before = isinstance(block, PostNormBlock)
        with torch.no_grad():
            read, tokens_after = tokens if before else block.norm1(tokens), block(tokens)
        found += [
            Steepness(name, bounds[0], _steepest(block, tokens, steps)),
            Steepness(f"{name}.attn", bounds[1], _steepest(block.attn, read, steps)),
        ]
        tokens = tokens_after
    return [*found, Steepness("network", network, _steepest(model, images, steps))]


def _steepest(function: Callable[[Tensor], Tensor], inputs: Tensor, steps: int) -> float:
    return max(jacobian_norm(function, each[None], steps=steps) for each in inputs)
