"""Everything that `heads` measures on one batch of images, by the names of the run's arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Literal, TypeAlias

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import cross_entropy

from polysem.probe import interactions
from polysem.probe.gates import GatedViT, rotated_heads
from polysem.probe.head_patterns import PROFILE, Moments, look
from polysem.probe.head_writes import attribute
from polysem.probe.interactions import Bases, Cost, Interactions, costs_without

__all__ = ["METHODS", "SHARES", "Batch", "Measured", "Method", "Plan", "make_plan", "measure"]

Method: TypeAlias = Literal["gradients", "hessian", "exact"]

#: Shares of all heads that the random-drop curve is measured at.
SHARES = tuple(step / 8 for step in range(9))


@dataclass(frozen=True)
class Plan:
    """What is measured, the same for all batches.

    Attributes
    ----------
    cost : callable
        What heads are held to.
    method : callable
        How all pairs are estimated, a function of `interactions`.
    pairs : list of (int, int)
        Heads whose interaction is computed exactly.
    n_shapley : int
        Samples of the Shapley interaction of these pairs; 0 for none.
    orders : list of list of int
        In which heads are dropped, one order a draw.
    bases : mapping from layer, or None
        Random partitions for the chance level.
    means : mapping from layer
        Mean output of each head over images [1, token, head, d_head].
    writes : bool
        Whether the model's heads can be told apart in what they write.
    """

    cost: Cost
    method: Callable[..., Interactions]
    pairs: list[tuple[int, int]]
    n_shapley: int
    orders: list[list[int]]
    bases: Bases
    means: Mapping[int, Tensor]
    writes: bool


@dataclass(frozen=True)
class Batch:
    """Some images.

    Attributes
    ----------
    images : Tensor
        What the model takes [image, channel, y, x].
    pixels : Tensor
        uint8, the same images.
    others : Tensor
        Other images drawn from the data, one for each, for resample ablation.
    labels : Tensor
        [image].
    """

    images: Tensor
    pixels: Tensor
    others: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Measured:
    """What a batch shows.

    Attributes
    ----------
    per_image : dict of str to array
        Image axis first; names and axes of `store.schema.GATES`.
    moments, pattern_sum
        As in `head_patterns.Looks`: sums over images.
    """

    per_image: dict[str, np.ndarray]
    moments: Moments
    pattern_sum: Tensor

    def on_host(self) -> Measured:
        """Return the same for other processes to read."""
        moments = Moments(self.moments.count, self.moments.first.cpu(), self.moments.second.cpu())
        return replace(self, moments=moments, pattern_sum=self.pattern_sum.cpu())


def all_exact(
    vit: GatedViT, images: Tensor, labels: Tensor, cost: Cost, *, rows: int, bases: Bases = None
) -> Interactions:
    """Return the exact interaction of all pairs; for small models."""
    n = len(vit.heads)
    above = [(i, j) for i in range(n) for j in range(i + 1, n)]
    first = interactions.by_gradients(vit, images, labels, cost, rows=rows, bases=bases)
    found = interactions.exact_pairs(vit, images, labels, cost, above, rows=rows, bases=bases)
    i, j = np.array(above).T
    pairs = torch.zeros_like(first.pairs)
    pairs[:, i, j] = pairs[:, j, i] = found
    return Interactions(first.clean, first.slope, pairs, first.alone)


#: How all pairs are found, by the name that the command line knows.
METHODS: Mapping[Method, Callable[..., Interactions]] = {
    "gradients": interactions.by_gradients,
    "hessian": interactions.by_hessian,
    "exact": all_exact,
}


def make_plan(
    vit: GatedViT,
    *,
    cost: Cost,
    method: Method,
    n_pairs: int,
    n_shapley: int,
    n_draws: int,
    chance: bool,
    means: Mapping[int, Tensor],
    writes: bool,
    seed: int,
) -> Plan:
    """Draw what is random: pairs, orders of dropping, and partitions of z."""
    rng = np.random.default_rng(seed)
    n = len(vit.heads)
    above = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = rng.permutation(len(above))[:n_pairs]
    generator = torch.Generator().manual_seed(seed)
    bases = None
    if chance:
        bases = {
            layer: rotated_heads(mean.shape[2], mean.shape[3], generator).to(mean)
            for layer, mean in means.items()
        }
    return Plan(
        cost=cost,
        method=METHODS[method],
        pairs=[above[p] for p in sorted(chosen)],
        n_shapley=n_shapley,
        orders=[[int(h) for h in rng.permutation(n)] for _ in range(n_draws)],
        bases=bases,
        means=means,
        writes=writes,
    )


def measure(vit: GatedViT, batch: Batch, plan: Plan, *, rows: int) -> Measured:
    """Measure one batch, inside `gates.frozen`; at most `rows` images go through side by side."""
    images, labels, cost = batch.images, batch.labels, plan.cost
    found = plan.method(vit, images, labels, cost, rows=rows)
    arrays = {"cost": found.clean, "slope": found.slope, "interaction": found.pairs}
    with torch.no_grad():
        stream = vit.stream(images)
        logits = vit.head(stream[-1])
        arrays |= _ablations(vit, stream, batch, plan, rows=rows)
        arrays |= _drops(vit, stream[0], labels, plan, rows=rows)
    if found.alone is not None:
        arrays["cost_zero"] = found.alone
    arrays["loss"] = cross_entropy(logits, labels, reduction="none")
    arrays["correct"] = (logits.argmax(1) == labels).float()
    if plan.pairs:
        arrays["exact"] = interactions.exact_pairs(vit, images, labels, cost, plan.pairs, rows=rows)
    if plan.pairs and plan.n_shapley:
        arrays["shapley"] = interactions.shapley_pairs(
            vit, images, labels, cost, plan.pairs, rows=rows, n_samples=plan.n_shapley
        )
    if plan.bases is not None:
        chance = plan.method(vit, images, labels, cost, rows=rows, bases=plan.bases)
        alone = chance.alone
        if alone is None:
            alone = _one_by_one(vit, stream, labels, cost, rows=rows, bases=plan.bases)
        arrays |= {"chance_cost": alone, "chance_interaction": chance.pairs}
    looks = look(vit, images, batch.pixels)
    arrays |= dict(zip(PROFILE, looks.profile, strict=True))
    arrays |= {"divergence": looks.divergence, "attention_map": looks.maps}
    if plan.writes:
        shares = attribute(vit, images, labels)
        arrays |= {
            "logit": shares.logit,
            "logit_share": shares.heads,
            "mlp_share": shares.mlps,
            "embedding_share": shares.embedding,
            "remainder": shares.remainder,
            "opposition": shares.opposition,
        }
    return Measured(
        {name: value.detach().cpu().numpy() for name, value in arrays.items()},
        looks.moments,
        looks.pattern_sum,
    )


def _ablations(
    vit: GatedViT, stream: list[Tensor], batch: Batch, plan: Plan, *, rows: int
) -> dict[str, Tensor]:
    """Return the cost without each head, put to nothing, to its mean, and to another image's."""
    others = mean_outputs(vit, batch.others, keep_images=True)
    references: dict[str, Mapping[int, Tensor] | None] = {
        "cost_zero": None, "cost_mean": plan.means, "cost_resample": others,
    }  # fmt: skip
    if plan.method is not interactions.by_hessian:
        del references["cost_zero"]  # the pairs bring it
    return {
        name: _one_by_one(vit, stream, batch.labels, plan.cost, rows=rows, references=reference)
        for name, reference in references.items()
    }


def _one_by_one(
    vit: GatedViT,
    stream: list[Tensor],
    labels: Tensor,
    cost: Cost,
    *,
    rows: int,
    **options: Mapping[int, Tensor] | None,
) -> Tensor:
    """Return the cost without each head [image, head]."""
    found = []
    for layer, heads in groupby(range(len(vit.heads)), key=lambda h: vit.heads[h][0]):
        sets = [[head] for head in heads]
        found.append(
            costs_without(vit, stream[layer], layer, sets, labels, cost, rows=rows, **options)
        )
    return torch.cat(found).T


def _drops(
    vit: GatedViT, tokens: Tensor, labels: Tensor, plan: Plan, *, rows: int
) -> dict[str, Tensor]:
    """Return loss, cost and correctness with a growing share of heads dropped [image, draw, share].

    With none and with all of them dropped every draw is the same, and is computed once.
    """
    counts = [round(share * len(vit.heads)) for share in SHARES]
    ends = [[], list(range(len(vit.heads)))]
    inner = [order[:count] for order in plan.orders for count in counts[1:-1]]

    def both(logits: Tensor, labels: Tensor) -> Tensor:
        loss = cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(1) == labels).to(loss)
        return torch.stack([loss, plan.cost(logits, labels), right], dim=1)

    found = costs_without(vit, tokens, 0, ends + inner, labels, both, rows=rows)
    first, last = (
        found[0].expand(len(plan.orders), 1, -1, -1),
        found[1].expand(len(plan.orders), 1, -1, -1),
    )
    curve = torch.cat([first, found[2:].unflatten(0, (-1, len(counts) - 2)), last], dim=1)
    names = ("drop_loss", "drop_cost", "drop_correct")
    return dict(zip(names, rearrange(curve, "draw share i what -> what i draw share"), strict=True))


def mean_outputs(vit: GatedViT, images: Tensor, *, keep_images: bool = False) -> dict[int, Tensor]:
    """Return z of each block [image or 1, token, head, d_head], by default its mean over images."""
    seen = {}

    def keep(layer: int, z: Tensor) -> None:
        seen[layer] = z if keep_images else z.mean(0, keepdim=True)

    with torch.no_grad():
        vit.finish(vit.embed(images), 0, {layer: partial(keep, layer) for layer in vit.layers})
    return seen
