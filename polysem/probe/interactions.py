"""How heads depend on each other: exact for chosen pairs, estimated for all pairs at once.

The interaction of heads i and j is what ablating both costs beyond the sum of what each costs,

    I_ij = f(1 − e_i − e_j) − f(1 − e_i) − f(1 − e_j) + f(1),

with f the cost (`gates.target_cost`) as a function of the gates: above 0 they cover for each
other, below 0 they fight, or one only repairs what the other does. It is the integral of the
mixed second derivative of f over both gates from 1 to 0. `by_hessian` takes that derivative at
1; `by_gradients` integrates it exactly over the first gate.

All functions take one batch of images of a `GatedViT` inside `gates.frozen`, and keep images
apart, as images do not see each other. Heads are numbered in network order, as in
``GatedViT.heads``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from polysem.probe.gates import GatedViT

__all__ = [
    "Bases", "Cost", "Interactions", "by_gradients", "by_hessian", "costs_without", "exact_pairs",
    "shapley_pairs",
]  # fmt: skip

#: From logits [image, class] and labels [image] to a cost [image].
Cost: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: A basis for each layer (`gates.rotated_heads`), or none.
Bases: TypeAlias = Mapping[int, Tensor] | None


@dataclass(frozen=True)
class Interactions:
    """What one batch says about all pairs.

    Attributes
    ----------
    clean : Tensor
        Cost of the network as it is [image].
    slope : Tensor
        Derivative of the cost by each gate at 1 [image, head].
    pairs : Tensor
        Estimated interaction [image, head i, head j]: of i ablated and the slope of j, where the
        method tells the two apart. The diagonal is zero.
    alone : Tensor or None
        Cost with each head ablated to zero [image, head]; None where it was not computed.
    """

    clean: Tensor
    slope: Tensor
    pairs: Tensor
    alone: Tensor | None = None


def by_gradients(
    vit: GatedViT, images: Tensor, labels: Tensor, cost: Cost, *, rows: int, bases: Bases = None
) -> Interactions:
    """Estimate all pairs from the slopes of all gates at each single ablation.

    ``I_ij ≈ ∂_j f(1) − ∂_j f(1 − e_i)``: head i is truly removed, head j to first order. One
    pass forward and back for each head: forward from its block on, back through the ablated
    blocks and then through the intact ones before, whose graph all ablations share.

    Parameters
    ----------
    vit : GatedViT
    images, labels : Tensor
        [image, channel, y, x], [image].
    cost : callable
        From `gates.target_cost`.
    rows : int
        Images times ablations that go through the network side by side, at most.
    bases : mapping, optional
        Gate random parts of z instead of its heads.
    """
    shape = (len(images), len(vit.layers), vit.n_heads)
    gates = images.new_ones(shape, requires_grad=True)
    slopes, costs = [], []
    with torch.enable_grad():
        stream = [vit.embed(images)]
        edits = vit.edits(gates, bases=bases)
        for layer in range(vit.n_blocks):
            stream.append(vit.step(stream[-1], layer, edits.get(layer)))
        clean = cost(vit.head(stream[-1]), labels)
        (slope,) = torch.autograd.grad(clean.sum(), gates, retain_graph=True)
        for layer, heads in _by_layer(vit, range(len(vit.heads)), rows, len(images)):
            entering, k = stream[layer], len(heads)
            leaf = _repeat(entering.detach(), k).requires_grad_()
            some = _repeat(torch.ones_like(gates), k).unflatten(0, (k, -1))
            some.flatten(2)[range(k), :, heads] = 0
            some = some.flatten(0, 1).requires_grad_()
            logits = vit.finish(leaf, layer, vit.edits(some, bases=bases))
            each = cost(logits, labels.repeat(k))
            after, into = torch.autograd.grad(each.sum(), (some, leaf), materialize_grads=True)
            costs.append(each.detach().unflatten(0, (k, -1)))
            for later, cotangent in zip(after.chunk(k), into.chunk(k), strict=True):
                earlier = torch.zeros_like(later)
                if entering.requires_grad:
                    (earlier,) = torch.autograd.grad(entering, gates, cotangent, retain_graph=True)
                slopes.append(earlier + later)
    pairs = slope.flatten(1)[:, None] - torch.stack(slopes, dim=1).flatten(2)
    alone = torch.cat(costs).T
    return Interactions(clean.detach(), slope.flatten(1), _hollow(pairs), alone)


def by_hessian(
    vit: GatedViT, images: Tensor, labels: Tensor, cost: Cost, *, rows: int, bases: Bases = None
) -> Interactions:
    """Estimate all pairs by the Hessian of the cost in the gates, all of them open.

    Hessian-vector products, forward over reverse, one for each head and from its block on; the
    heads of a block share what does not depend on the head. Attention is unfused for this, as
    fused kernels have no second derivative. Parameters as in `by_gradients`.
    """
    n_images, n_heads = len(images), len(vit.heads)
    ones = images.new_ones(n_images, len(vit.layers), vit.n_heads)
    hessian = images.new_zeros(n_images, n_heads, n_heads)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # torch's own forward-mode rules are written with what torch itself has deprecated
        warnings.filterwarnings("ignore", "`torch.jit.script` is", DeprecationWarning)
        with torch.no_grad():
            stream = vit.stream(images)
            clean = cost(vit.head(stream[-1]), labels)
        slope = torch.func.grad(_total(vit, stream[0], 0, labels, cost, bases))(ones)
        for layer, heads in _by_layer(vit, range(n_heads), rows, n_images):
            gradient = torch.func.grad(_total(vit, stream[layer], layer, labels, cost, bases))

            def product(direction: Tensor, gradient: Callable[..., Tensor] = gradient) -> Tensor:
                tangent: Tensor = torch.func.jvp(gradient, (ones,), (direction,))[1]
                return tangent

            directions = images.new_zeros(len(heads), n_images, n_heads)
            directions[range(len(heads)), :, heads] = 1
            products = torch.func.vmap(product)(directions.view(-1, *ones.shape)).flatten(2)
            hessian[:, heads] = products.transpose(0, 1)
    # each product starts at its head's block: what lies before is in the other triangle
    earlier = torch.tensor([layer for layer, _ in vit.heads], device=images.device)
    hessian = torch.where(earlier[:, None] > earlier, hessian.mT, hessian)
    return Interactions(clean, slope.flatten(1), _hollow(hessian))


def _total(
    vit: GatedViT, tokens: Tensor, layer: int, labels: Tensor, cost: Cost, bases: Bases
) -> Callable[[Tensor], Tensor]:
    """Return the sum over images of the cost as a function of the gates [image, layer, head]."""

    def total(gates: Tensor) -> Tensor:
        return cost(vit.finish(tokens, layer, vit.edits(gates, bases=bases)), labels).sum()

    return total


def exact_pairs(
    vit: GatedViT,
    images: Tensor,
    labels: Tensor,
    cost: Cost,
    pairs: Sequence[tuple[int, int]],
    *,
    rows: int,
    bases: Bases = None,
) -> Tensor:
    """Return the exact interaction of pairs of heads [image, pair].

    Head i is ablated once; each j is then ablated in a network that is run on from j's block,
    from the tokens that i's ablation leaves there.

    Parameters
    ----------
    vit, images, labels, cost, rows, bases
        As in `by_gradients`.
    pairs : sequence of (int, int)
        Numbers of heads, the earlier one first.
    """
    both = images.new_zeros(len(pairs), len(images))
    alone: dict[int, Tensor] = {}
    order = sorted(range(len(pairs)), key=lambda p: pairs[p])
    with torch.no_grad():
        stream = vit.stream(images)
        clean = cost(vit.head(stream[-1]), labels)
        for i, group in groupby(order, key=lambda p: pairs[p][0]):
            with_i, first = list(group), vit.heads[i][0]
            tokens = stream[first]
            for layer in range(first, vit.n_blocks):
                off = [i] if layer == first else []
                here = [p for p in with_i if vit.heads[pairs[p][1]][0] == layer]
                sets = [[*off, pairs[p][1]] for p in here]
                both[here] = costs_without(
                    vit, tokens, layer, sets, labels, cost, rows=rows, bases=bases
                )
                edits = vit.without(len(images), [off], images, bases=bases)
                tokens = vit.step(tokens, layer, edits.get(layer))
            alone[i] = cost(vit.head(tokens), labels)
        last = sorted({j for _, j in pairs} - alone.keys())
        for layer, heads in groupby(last, key=lambda j: vit.heads[j][0]):
            js = list(heads)
            sets = [[j] for j in js]
            costs = costs_without(
                vit, stream[layer], layer, sets, labels, cost, rows=rows, bases=bases
            )
            alone |= dict(zip(js, costs, strict=True))
    singles = torch.stack([alone[i] + alone[j] for i, j in pairs])
    return (both - singles + clean).T


def costs_without(
    vit: GatedViT,
    tokens: Tensor,
    layer: int,
    sets: Sequence[Sequence[int]],
    labels: Tensor,
    cost: Cost,
    *,
    rows: int,
    **options: Mapping[int, Tensor] | None,
) -> Tensor:
    """Return the cost [set, image, …] of running on without each set of heads.

    Parameters
    ----------
    vit : GatedViT
    tokens : Tensor
        What enters block `layer` [image, token, d_model]; no head of a set lies before it.
    sets : sequence of sequence of int
        Numbers of the heads that are ablated together.
    labels, cost, rows
        As in `by_gradients`.
    **options
        `bases` and `references`, as in `gates.Gate`.
    """
    n_images, many = len(labels), max(1, rows // len(labels))
    found = []
    for start in range(0, len(sets), many):
        some = sets[start : start + many]
        here = {
            name: given
            and {
                at: _repeat(z, len(some)) if name == "references" and len(z) == n_images else z
                for at, z in given.items()
            }
            for name, given in options.items()
        }
        edits = vit.without(n_images, some, tokens, **here)
        logits = vit.finish(_repeat(tokens, len(some)), layer, edits)
        found.append(cost(logits, labels.repeat(len(some))).unflatten(0, (len(some), n_images)))
    return torch.cat(found) if found else tokens.new_zeros(0, n_images)


def shapley_pairs(
    vit: GatedViT,
    images: Tensor,
    labels: Tensor,
    cost: Cost,
    pairs: Sequence[tuple[int, int]],
    *,
    rows: int,
    n_samples: int,
    seed: int = 0,
) -> Tensor:
    """Return the sampled Shapley interaction of pairs of heads [image, pair].

    The mean of I_ij over networks in which a random set of the other heads is ablated too: a
    random number of them, then so many at random (Grabisch & Roubens 1999). A slow reference
    that knows of more than the intact network: four passes a sample and pair. Parameters as in
    `exact_pairs`.
    """
    rng = np.random.default_rng(seed)
    n_heads, found = len(vit.heads), []
    with torch.no_grad():
        tokens = vit.embed(images)
        for i, j in pairs:
            others = np.setdiff1d(np.arange(n_heads), (i, j))
            sets: list[list[int]] = []
            for _ in range(n_samples):
                off = [int(h) for h in rng.permutation(others)[: rng.integers(len(others) + 1)]]
                sets += [[*off, i, j], [*off, i], [*off, j], off]
            costs = costs_without(vit, tokens, 0, sets, labels, cost, rows=rows)
            signs = costs.new_tensor([1.0, -1.0, -1.0, 1.0])
            found.append(
                torch.einsum("s k i, k -> i", costs.unflatten(0, (-1, 4)), signs) / n_samples
            )
    return torch.stack(found, dim=1)


def _by_layer(
    vit: GatedViT, heads: Sequence[int], rows: int, n_images: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield a layer and some of its heads, as many as fit side by side."""
    many = max(1, rows // n_images)
    for layer, group in groupby(heads, key=lambda h: vit.heads[h][0]):
        same = list(group)
        for start in range(0, len(same), many):
            yield layer, same[start : start + many]


def _repeat(value: Tensor, times: int) -> Tensor:
    """Return `times` copies below each other, rows [copy · image]."""
    return value if times == 1 else value.repeat(times, *(1,) * (value.ndim - 1))


def _hollow(pairs: Tensor) -> Tensor:
    """Return pairs [image, head, head] with a diagonal of zeros."""
    return pairs * (1 - torch.eye(pairs.shape[-1], dtype=pairs.dtype, device=pairs.device))
