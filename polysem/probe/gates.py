"""Turn attention heads down and run a vision transformer on from the first block that changes.

A gate multiplies one head's output z; at 1 the head is as it was, at 0 it says nothing. What
lies before the first changed block is never computed again: `GatedViT` runs a network block by
block, from whatever tokens it is given. Rows of a batch may be gated differently, so that many
ablations go through the network side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from polysem.errors import SpecError
from polysem.models.hooked import HookedVisionModel
from polysem.models.taps import tapped
from polysem.sites import parse_site

__all__ = ["Gate", "GatedViT", "Target", "frozen", "rotated_heads", "target_cost"]

Target: TypeAlias = Literal["margin", "loss"]


@dataclass(frozen=True)
class Gate:
    """What is done to the heads of one block: ``reference + gate · (z − reference)``.

    Attributes
    ----------
    values : Tensor
        [row, head], or [head] for all rows alike.
    reference : Tensor or None
        What a head says at gate 0, broadcast to [row, token, head, d_head]; None is nothing.
    basis : Tensor or None
        Orthogonal [d, d] of all heads' dimensions d = head · d_head: "heads" are then groups of
        its columns instead of the network's own. See `rotated_heads`.
    """

    values: Tensor
    reference: Tensor | None = None
    basis: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return z [row, token, head, d_head] with its heads turned down."""
        gate = self.values[..., None, :, None]
        if self.basis is not None:
            turned = (z.flatten(2) @ self.basis).view_as(z) * gate
            return (turned.flatten(2) @ self.basis.T).view_as(z)
        return z * gate if self.reference is None else torch.lerp(self.reference, z, gate)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode, its parameters out of the graph; undo both at the end."""
    training = [m for m in model.modules() if m.training]
    learnt = [p for p in model.parameters() if p.requires_grad]
    try:
        model.eval()
        for parameter in learnt:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def margin_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how far the right logit lies below the highest other one [image]."""
    right = logits.gather(-1, labels[:, None])
    others = logits.scatter(-1, labels[:, None], -math.inf)
    return others.amax(-1) - right[:, 0]


def loss_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy [image]."""
    return cross_entropy(logits, labels, reduction="none")


def target_cost(target: Target) -> Callable[[Tensor, Tensor], Tensor]:
    """Return f(logits [image, class], labels [image]) → cost [image], higher is worse.

    ``margin`` is the correct-class margin with its sign turned, so that signs of importance and
    interaction mean the same for both targets.
    """
    return {"margin": margin_cost, "loss": loss_cost}[target]


class GatedViT:
    """A vision transformer that runs on from any block, its heads gated.

    Parameters
    ----------
    model : nn.Module
        A model that `HookedVisionModel` wraps.

    Attributes
    ----------
    layers : tuple of int
        The blocks whose heads can be gated.
    n_heads : int
        Heads of each of them.
    heads : list of (int, int)
        Layer and head of each, in network order.

    Raises
    ------
    SpecError
        If the model has no attention heads, a single one, or blocks of different numbers of heads.
    """

    def __init__(self, model: nn.Module) -> None:
        hooked = HookedVisionModel(model)
        sites = [s for n in hooked.hook_dict if (s := parse_site(n)).part == "attn.hook_z"]
        self.layers = tuple(s.layer for s in sites if s.layer is not None)
        if not self.layers:
            raise SpecError(
                f"{type(model).__name__} has no attention heads that can be gated; give a vision "
                "transformer"
            )
        self.model: Any = model
        counts = {int(model.blocks[layer].attn.num_heads) for layer in self.layers}  # type: ignore[index, union-attr]
        if len(counts) > 1:
            raise SpecError(
                f"the blocks of {type(model).__name__} have different numbers of heads "
                f"({', '.join(map(str, sorted(counts)))}); they must have the same"
            )
        self.n_heads = counts.pop()
        self.heads = [(layer, head) for layer in self.layers for head in range(self.n_heads)]
        if len(self.heads) < 2:
            raise SpecError(
                f"{type(model).__name__} has a single attention head: there is nothing that it "
                "could work with or against"
            )
        self.hooked, self.taps = hooked, hooked.taps
        self.n_blocks = len(model.blocks)  # type: ignore[arg-type]

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens [image, token, d_model] that enter block 0."""
        model = self.model
        placed = model._pos_embed(model.patch_embed(images))
        tokens: Tensor = model.norm_pre(model.patch_drop(placed))
        return tokens

    def step(
        self, tokens: Tensor, layer: int, edit: Callable[[Tensor], Any] | None = None
    ) -> Tensor:
        """Run one block; `edit` is shown z and may return another."""
        points = {} if edit is None else {f"blocks.{layer}.attn.hook_z": _answer(edit)}
        with tapped(self.taps, points):
            out: Tensor = self.model.blocks[layer](tokens)
        return out

    def finish(
        self,
        tokens: Tensor,
        start: int = 0,
        edits: Mapping[int, Callable[[Tensor], Any]] | None = None,
    ) -> Tensor:
        """Run blocks `start` to the last, each with its edit if it has one; return the logits."""
        for layer in range(start, self.n_blocks):
            tokens = self.step(tokens, layer, (edits or {}).get(layer))
        return self.head(tokens)

    def head(self, tokens: Tensor) -> Tensor:
        """Return the logits [image, class] of what leaves the last block."""
        logits: Tensor = self.model.forward_head(self.model.norm(tokens))
        return logits

    def stream(self, images: Tensor) -> list[Tensor]:
        """Return what enters each block, and last what leaves the last one."""
        tokens = [self.embed(images)]
        for layer in range(self.n_blocks):
            tokens.append(self.step(tokens[-1], layer))
        return tokens

    def edits(
        self,
        gates: Tensor,
        *,
        layers: Collection[int] | None = None,
        bases: Mapping[int, Tensor] | None = None,
        references: Mapping[int, Tensor] | None = None,
    ) -> dict[int, Gate]:
        """Return the gate of each block.

        Parameters
        ----------
        gates : Tensor
            [row, layer, head], layers as in the attribute.
        layers : collection of int, optional
            Leave out all others.
        bases, references : mapping from layer, optional
            As in `Gate`.
        """
        return {
            layer: Gate(gates[:, i], (references or {}).get(layer), (bases or {}).get(layer))
            for i, layer in enumerate(self.layers)
            if layers is None or layer in layers
        }

    def without(
        self, n_images: int, sets: Sequence[Collection[int]], like: Tensor, **options: Any
    ) -> dict[int, Gate]:
        """Return the gates that take away each set of heads in turn, for rows [set · image].

        Heads are numbered as in the attribute; options are those of `edits`.
        """
        gates = like.new_ones(len(sets), len(self.heads))
        for row, closed in enumerate(sets):
            gates[row, list(closed)] = 0
        layers = {self.heads[head][0] for closed in sets for head in closed}
        shaped = gates.view(len(sets), 1, len(self.layers), self.n_heads)
        rows = shaped.expand(-1, n_images, -1, -1).flatten(0, 1)
        return self.edits(rows, layers=layers, **options)

    def check(self, images: Tensor) -> None:
        """Compare one pass, block by block, with the model's own.

        Raises
        ------
        SpecError
            If the model does something between or around its blocks that is not known here.
        """
        with torch.no_grad():
            ours, own = self.finish(self.embed(images)), self.model(images)
        if ours.shape != own.shape or not torch.allclose(ours, own, rtol=1e-3, atol=1e-3):
            raise SpecError(
                f"{type(self.model).__name__} does more than run its blocks one after the other; "
                "its heads cannot be gated"
            )


def _answer(edit: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def show(z: Tensor) -> Tensor:
        edited = edit(z)
        return z if edited is None else edited

    return show


def rotated_heads(n_heads: int, d_head: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix [d, d], whose columns in groups of d_head are "heads".

    They part the same z at random: what they show is what a network's width alone would give.
    """
    size = n_heads * d_head
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(noise)
    rotation: Tensor = q * r.diagonal().sign()  # uniform (Mezzadri, math-ph/0609050)
    return rotation
