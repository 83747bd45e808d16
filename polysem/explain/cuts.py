"""A network cut at some of its sites: what passes from one to another and through no other.

Each site passes on a constant instead of what arrived. What arrives at a site then depends on the
constants of the sites before it by direct paths alone, and activation times gradient shares it out
among them. Of a B-cos network W(x) is held fixed: the parts of all sites before, and of the image
around them, make up what arrives. For other networks this is attribution patching restricted to
direct paths (Syed et al. 2310.10348); `edge_ablation` holds it against true ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from polysem.explain.forward import explaining, forward
from polysem.explain.linear import summarising
from polysem.models.bcos import logit_bias
from polysem.models.hooked import HookedVisionModel
from polysem.models.norms import held
from polysem.sites import parse_site

__all__ = [
    "CLASS", "IMAGE", "Cut", "Norms", "by_face", "cut", "gradients", "parts", "prepared",
    "signed_sites",
]  # fmt: skip

#: Whether normalisations are held fixed for derivatives, in networks that are not B-cos.
Norms: TypeAlias = Literal["free", "held"]

#: Where the logits are, less what B-cos networks add to all of them; comes after all sites.
CLASS = "class"

#: What the paths around all sites start from.
IMAGE = "image"


@dataclass(frozen=True)
class Cut:
    """One forward pass, cut.

    Attributes
    ----------
    arrived : dict of str to Tensor
        By site in network order, then `CLASS`: the activation with its graph.
    constants : dict of str to Tensor
        By site that is cut: what the network goes on with; and the images, as `IMAGE`.
    n_prefix_tokens : int
        Tokens before the patches.
    """

    arrived: dict[str, Tensor]
    constants: dict[str, Tensor]
    n_prefix_tokens: int

    def before(self, site: str) -> list[str]:
        """Return the sites that are cut before a site, the image first."""
        order = list(self.arrived)
        return [IMAGE, *(s for s in order[: order.index(site)] if s in self.constants)]


@contextmanager
def prepared(model: nn.Module, *, bcos: bool, norms: Norms = "free") -> Iterator[None]:
    """Freeze a model; of a B-cos network hold fixed what makes up W(x), too.

    Parameters
    ----------
    model : nn.Module
    bcos : bool
        Whether it is a B-cos network, whose norms are part of W(x) in any case.
    norms : {"free", "held"}, default "free"
        Whether derivatives see that LayerNorms of tokens divide by a deviation. What a norm gives
        does not change if all it reads grows in proportion, so that derivatives along all parts of
        it together are none; with deviations held, parts sum to what arrives, less biases.
    """
    handles = []
    try:
        with (summarising if bcos else explaining)(model, kernels_for_rows=True):
            if norms == "held" and not bcos:
                handles = [
                    module.register_forward_hook(_hold)
                    for module in model.modules()
                    if isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__
                ]
            yield
    finally:
        for handle in handles:
            handle.remove()


def _hold(norm: nn.Module, inputs: tuple[Tensor, ...], values: Tensor) -> Tensor:
    return held(norm, inputs[0], values)


def signed_sites(model: nn.Module, sites: Sequence[str]) -> dict[str, bool]:
    """Tell for each site whether its units have two faces: heads have one, as have ReLU's units."""
    taps = HookedVisionModel(model).taps
    return {s: taps[s].signed and parse_site(s).unit_dim != "head" for s in sites}


def cut(model: nn.Module, x: Tensor, sites: Sequence[str], *, read: Sequence[str] = ()) -> Cut:
    """Run a model once, cut at some sites, within `prepared`.

    Parameters
    ----------
    model : nn.Module
    x : Tensor
        The model's input [image, channel, y, x].
    sites : sequence of str
        Where it is cut.
    read : sequence of str
        Other sites where what arrives is kept, but goes on.

    Raises
    ------
    SpecError
        If a site is not one of the model's, or the images do not fit it.
    """
    images = x.detach().clone().requires_grad_()
    arrived: dict[str, Tensor] = {}
    constants = {IMAGE: images}
    points: dict[str, Callable[[Tensor], Tensor | None]] = {
        **{site: partial(_keep, arrived, site) for site in read},
        **{site: partial(_cut_at, arrived, constants, site) for site in sites},
    }
    logits, prefix, _ = forward(model, images, points)
    arrived[CLASS] = logits - logit_bias(model)
    return Cut(arrived, constants, prefix)


def gradients(at: Cut, site: str, cotangents: Tensor) -> dict[str, Tensor]:
    """Return gradients at a site along direct paths, by where these start.

    Parameters
    ----------
    at : Cut
    site : str
        Or `CLASS`.
    cotangents : Tensor [row, image, …]
        What is asked of the activation there: weights of a sum over it.

    Returns
    -------
    dict of str to Tensor [row, image, …]
        By earlier site and `IMAGE`.
    """
    starts = [at.constants[start] for start in at.before(site)]
    found = torch.autograd.grad(
        at.arrived[site], starts, cotangents, retain_graph=True, is_grads_batched=True,
        allow_unused=True,
    )  # fmt: skip
    return {  # where no path leads, torch would leave the rows out
        name: start.new_zeros(len(cotangents), *start.shape) if gradient is None else gradient
        for name, start, gradient in zip(at.before(site), starts, found, strict=True)
    }


def parts(
    at: Cut, found: Mapping[str, Tensor], signed: Mapping[str, bool]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return activation times gradient, summed over tokens or places.

    Parameters
    ----------
    at : Cut
    found : mapping of str to Tensor [row, image, …]
        `gradients`.
    signed : mapping of str to bool
        By site: whether its units have two faces.

    Returns
    -------
    units : dict of str to Tensor [row, image, tail, unit]
        By earlier site: what each face contributes.
    image : Tensor [row, image]
        What comes from the image around all sites. With the units it makes up the sum asked for,
        but for constants and bends.
    """
    shared = {start: gradient * at.constants[start].detach() for start, gradient in found.items()}
    image = shared.pop(IMAGE).flatten(2).sum(2)
    units = {s: by_face(c, at.constants[s], s, signed=signed[s]) for s, c in shared.items()}
    return units, image


def by_face(contribution: Tensor, activation: Tensor, site: str, *, signed: bool) -> Tensor:
    """Sum contributions over tokens or places, apart by the sign of the activation.

    Parameters
    ----------
    contribution : Tensor [row, image, …]
    activation : Tensor [image, …]
    site : str
    signed : bool
        Whether units have two faces.

    Returns
    -------
    Tensor [row, image, tail, unit]
        Upper before lower; the upper alone where units are not signed.
    """
    dims = parse_site(site).dims
    unit = 1 + dims.index(parse_site(site).unit_dim)
    others = [axis for axis in range(2, contribution.ndim) if axis != unit]

    def summed(some: Tensor) -> Tensor:
        return some.sum(others) if others else some

    if not signed:
        return summed(contribution)[:, :, None]
    up = summed(torch.where(activation > 0, contribution, 0))
    return torch.stack([up, summed(contribution) - up], dim=2)


def _keep(arrived: dict[str, Tensor], site: str, activation: Tensor) -> None:
    arrived[site] = activation


def _cut_at(
    arrived: dict[str, Tensor], constants: dict[str, Tensor], site: str, activation: Tensor
) -> Tensor:
    arrived[site] = activation
    constants[site] = activation.detach().clone().requires_grad_()
    return constants[site]
