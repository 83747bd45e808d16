"""Attention as explanation: the last pattern, its rollout through all blocks, with gradients.

Patterns come from the network's own queries and keys (`attn.hook_pattern`). Which queries count
is what the target reads: the class token, all patches of an average-pooled network, or the patch
where a neuron fired.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from polysem.errors import SpecError, did_you_mean
from polysem.explain.forward import (
    explaining,
    forward,
    read_unit,
    require_finite_map,
    target_values,
)
from polysem.explain.maps import patch_grid, spread
from polysem.explain.target import Target, TargetLike, sites_of
from polysem.sites import parse_site

__all__ = [
    "attention_patterns",
    "gradient_rollout",
    "head_maps",
    "raw_attention",
    "require_attention",
    "rollout",
    "rollout_matrix",
]


def rollout(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Attention rollout: how much of each patch reaches the target along attention.

    The product over blocks of :func:`rollout_matrix`, up to the target's block. It knows the
    target's place but not which class or neuron it is. Abnar and Zuidema, arXiv 2005.00928.

    Parameters
    ----------
    model : nn.Module
        A vision transformer.
    images : Tensor
        The model's input [image, channel, y, x].
    target : Target or Tensor
        What is explained.

    Returns
    -------
    Tensor
        [image, y, x], at least 0; sums to 1 less what class and register tokens hold.

    Raises
    ------
    SpecError
        If the model has no attention, or target or images do not fit it.
    NonFiniteError
        If the map is not finite.
    """
    with explaining(model), torch.no_grad():
        patterns, queries = _patterns_to(model, images, target)
        flow = _rows(rollout_matrix(patterns), queries)
    return _as_maps(model, images, flow, "rollout")


def gradient_rollout(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Rollout of the attention that raises the target: ``Ā = mean_h relu(∇A ⊙ A)``, R += ĀR.

    What remains of each patch in itself, the identity that R starts from, is left out of the
    map. Chefer et al., arXiv 2103.15679, equations 5 and 6.

    Parameters and errors are those of :func:`rollout`.

    Returns
    -------
    Tensor
        [image, y, x], at least 0.
    """
    sites = _pattern_sites(model, target)
    patterns: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def edited(pattern: Tensor) -> Tensor:
            patterns[name] = pattern.clone()
            return patterns[name]  # so that the heads' output is computed from it

        return edited

    with explaining(model):
        x = images.detach().clone().requires_grad_()
        value = target_values(model, x, [target], edits={site: keep(site) for site in sites})[0]
        gradients = torch.autograd.grad(
            value.sum(), [patterns[s] for s in sites], materialize_grads=True
        )
        queries = _queries(model, images, target)
    n_tokens = gradients[0].shape[-1]
    eye = torch.eye(n_tokens, dtype=x.dtype, device=x.device)
    relevance = eye.expand(len(images), -1, -1)
    for site, gradient in zip(sites, gradients, strict=True):
        raised = (gradient * patterns[site].detach()).clamp(min=0).mean(1)
        relevance = relevance + raised @ relevance
    return _as_maps(model, images, _rows(relevance - eye, queries), "gradient_rollout")


def raw_attention(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Show the last block's attention, averaged over heads; of a head, its own.

    Of a unit of a block, that block's. Parameters and errors are those of :func:`rollout`.

    Returns
    -------
    Tensor
        [image, y, x], at least 0; sums to 1 less what class and register tokens get.
    """
    with explaining(model), torch.no_grad():
        patterns, queries = _patterns_to(model, images, target)
    pattern = patterns[-1].mean(1)
    if isinstance(target, Target) and target.site and "head" in parse_site(target.site).dims:
        pattern = patterns[-1][:, target.unit]
    return _as_maps(model, images, _rows(pattern, queries), "raw_attention")


def head_maps(model: nn.Module, images: Tensor, *, layer: int) -> Tensor:
    """Return where each head of a block looks, over the queries that the classifier reads.

    Parameters
    ----------
    model : nn.Module
        A vision transformer.
    images : Tensor
        The model's input [image, channel, y, x].
    layer : int
        The block, from 0 on; negative ones count from the last.

    Returns
    -------
    Tensor
        [image, head, y, x], at least 0.

    Raises
    ------
    SpecError
        If the model has no attention, or no such block.
    """
    with explaining(model), torch.no_grad():
        patterns = attention_patterns(model, images)
        queries = _pooled_queries(model, images, patterns[0].shape[-1])
    if not -len(patterns) <= layer < len(patterns):
        raise SpecError(f"there is no block {layer}: the model has {len(patterns)}, from 0 on")
    flow = torch.einsum("ihqk,iq->ihk", patterns[layer], queries)
    maps = [_as_maps(model, images, head, "head_maps") for head in flow.unbind(1)]
    return torch.stack(maps, dim=1)


def rollout_matrix(patterns: list[Tensor]) -> Tensor:
    """Return the product of ``½(A + I)`` over blocks, A the mean over heads, rows summing to 1.

    Parameters
    ----------
    patterns : list of Tensor
        [image, head, query, key] of each block, the first block first.

    Returns
    -------
    Tensor
        [image, query, key]: how much of each input token is in each output token.

    Examples
    --------
    >>> even = torch.full((1, 1, 2, 2), 0.5)
    >>> rollout_matrix([even, even])[0]
    tensor([[0.6250, 0.3750],
            [0.3750, 0.6250]])
    """
    product = None
    for pattern in patterns:
        mean = pattern.mean(1)
        step = mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        step = step / step.sum(-1, keepdim=True)  # ½ where rows of A sum to 1
        product = step if product is None else step @ product
    assert product is not None
    return product


def attention_patterns(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the attention of each block, [image, head, query, key]; within `explaining`."""
    return _read(model, images, _pattern_sites(model, None))


def _read(model: nn.Module, images: Tensor, sites: list[str]) -> list[Tensor]:
    seen: dict[str, Tensor] = {}
    forward(model, images, {site: partial(_keep, seen, site) for site in sites})
    return [seen[site] for site in sites]


def _keep(seen: dict[str, Tensor], site: str, activation: Tensor) -> None:
    seen[site] = activation


def require_attention(model: nn.Module, target: TargetLike | None = None) -> None:
    """Refuse a model without attention whose pattern can be read, or with none before a target.

    Raises
    ------
    SpecError
        If there is none.
    """
    if target is not None:
        _pattern_sites(model, target)
    elif not any(site.endswith("attn.hook_z") for site in sites_of(model)):
        raise SpecError(
            f"rollout and raw attention need attention patterns, and {type(model).__name__} has "
            "none; try bcos, gradcam or input_gradient"
        )


def _pattern_sites(model: nn.Module, target: TargetLike | None) -> list[str]:
    """Return the patterns of all blocks, or of those on the way to a target."""
    require_attention(model)
    found = [s.replace("hook_z", "hook_pattern") for s in sites_of(model) if s.endswith("hook_z")]
    if not isinstance(target, Target) or target.site is None:
        return found
    if target.site not in sites_of(model):
        near = did_you_mean(target.site, sites_of(model))
        raise SpecError(f"this model has no site {target.site!r}{near}")
    layer, part = parse_site(target.site).layer, parse_site(target.site).part
    if target.site == "hook_embed":
        layer = -1
    elif layer is None:
        return found
    before = part in ("hook_resid_pre", "ln1.hook_normalized", "attn.hook_v")
    reached = [s for s in found if (parse_site(s).layer or 0) < layer + (not before)]
    if not reached:
        raise SpecError(f"no attention comes before {target.site}, so none explains it")
    return reached


def _patterns_to(
    model: nn.Module, images: Tensor, target: TargetLike
) -> tuple[list[Tensor], Tensor]:
    """Return the patterns on the way to a target, and how much it reads of each query."""
    sites = _pattern_sites(model, target)
    return _read(model, images, sites), _queries(model, images, target)


def _queries(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Return the share of each token in what the target reads, [image, token]."""
    site = target.site if isinstance(target, Target) else None
    dims = () if site is None else parse_site(site).dims
    seen: dict[str, Tensor] = {}
    watched = site if site is not None and "token" in dims else _pattern_sites(model, None)[-1]
    with torch.no_grad():
        logits, prefix, has_class = forward(
            model, images, {watched: lambda a: seen.update({"at": a})}
        )
    if isinstance(target, Target) and target.site is None and target.unit >= logits.shape[1]:
        raise SpecError(
            f"there is no class {target.unit}: the model has {logits.shape[1]}, from 0 on"
        )
    if "token" not in dims:
        return _pooled_queries(model, images, seen["at"].shape[-1])
    assert isinstance(target, Target)
    activation = seen["at"].detach().requires_grad_()
    with torch.enable_grad():
        value = read_unit(activation, target, prefix, has_class)
        (gradient,) = torch.autograd.grad(value.sum(), activation)
    read = gradient.flatten(2).norm(dim=-1)
    even = torch.full_like(read, 1 / read.shape[1])
    total = read.sum(1, keepdim=True)
    return torch.where(total > 0, read / total.clamp_min(1e-30), even)


def _pooled_queries(model: nn.Module, images: Tensor, n_tokens: int) -> Tensor:
    """Return the share of each token in what the classifier reads, [image, token]."""
    shares = images.new_zeros(len(images), n_tokens)
    if getattr(model, "global_pool", "") == "token":
        shares[:, 0] = 1
        return shares
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    shares[:, prefix:] = 1 / (n_tokens - prefix)
    return shares


def _rows(matrix: Tensor, queries: Tensor) -> Tensor:
    """Return the mean row of matrices [image, query, key] over queries [image, query]."""
    return torch.einsum("iqk,iq->ik", matrix, queries.to(matrix))


def _as_maps(model: nn.Module, images: Tensor, keys: Tensor, method: str) -> Tensor:
    """Return maps [image, y, x] of what each token [image, key] got; prefix tokens left out."""
    patches = keys[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    grid = patch_grid(model, images, patches.shape[1])
    maps = require_finite_map(patches.unflatten(1, grid), method)
    return spread(maps.detach(), (images.shape[2], images.shape[3]))
