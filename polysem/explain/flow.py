"""How the firing of a target flows back through a network that is cut, from site to site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.explain.cuts import (
    CLASS,
    IMAGE,
    Cut,
    Norms,
    by_face,
    cut,
    gradients,
    parts,
    prepared,
    signed_sites,
)
from polysem.explain.run_exemplars import Exemplars, is_bcos, pointed
from polysem.explain.tracing import shown
from polysem.models.load import LoadedModel
from polysem.sites import parse_site

__all__ = ["Face", "Flow", "Into"]

#: A node: site, tail and unit.
Face: TypeAlias = tuple[str, str, int]

#: Exemplars of one pass, and of one backward pass over several faces.
_AT_A_TIME = {"cpu": (16, 64), "cuda": (128, 1024)}


@dataclass
class Into:
    """What flows into one node, its sums over exemplars: of each face by site, and the image."""

    units: dict[str, Tensor] = field(default_factory=dict)
    image: float = 0.0

    def add(self, units: Mapping[str, Tensor], image: Tensor, weight: Tensor) -> None:
        """Add some exemplars: [image, tail, unit] by site and [image], weighted [image]."""
        for site, part in units.items():
            some = torch.einsum("i,itu->tu", weight, part).double().cpu()
            self.units[site] = self.units[site] + some if site in self.units else some
        self.image += float((weight * image).sum())


class Flow:
    """A network cut at some sites, and the images of a target's exemplars."""

    def __init__(
        self,
        loaded: LoadedModel,
        source: ImageData,
        sites: Sequence[str],
        order: Sequence[str],
        norms: Norms,
    ) -> None:
        self.loaded, self.source, self.sites, self.order = loaded, source, sites, order
        self.signed = signed_sites(loaded.model, sites)
        self.norms, self.bcos = norms, is_bcos(loaded)
        like = next(loaded.model.parameters())
        self.n_images, self.n_rows = _AT_A_TIME.get(like.device.type, (16, 64))

    def values(self, site: str, each: Exemplars) -> npt.NDArray[np.float64]:
        """Return how strongly each exemplar fires [row]."""
        found = np.zeros(len(each.image))
        at = 0
        for passed, ones, weight in self.batches(site, each, np.ones(len(each.image))):
            value = (passed.arrived[site].detach() * ones[0]).flatten(1).sum(1)
            found[at : at + len(weight)] = value.cpu().numpy()
            at += len(weight)
        return found

    def batches(
        self, site: str, each: Exemplars, weights: npt.NDArray[np.float64]
    ) -> Iterator[tuple[Cut, Tensor, Tensor]]:
        """Yield networks cut, what points at the exemplars [1, image, …], and weights [image]."""
        read = [] if site in (*self.sites, CLASS) else [site]
        for start in range(0, len(each.image), self.n_images):
            rows = np.arange(start, min(start + self.n_images, len(each.image)))
            with prepared(self.loaded.model, bcos=self.bcos, norms=self.norms):
                x = shown(self.loaded, self.source, [int(i) for i in each.image[rows]])
                passed = cut(self.loaded.model, x, self.sites, read=read)
                arrived, mine = passed.arrived[site], [rows[k : k + 1] for k in range(len(rows))]
                pointing = pointed(each, mine, arrived, passed.n_prefix_tokens, len(rows))
                _, _, ones = next(pointing)
                yield passed, ones, torch.from_numpy(weights[rows]).to(x)

    def back(
        self, passed: Cut, site: str, ones: Tensor, weight: Tensor, end: Into | None
    ) -> dict[str, Tensor]:
        """Return the target's gradient at each site before it, the last first; count its edges."""
        found = gradients(passed, site, ones)
        if end is not None:
            units, image = parts(passed, found, self.signed)
            end.add({s: part[0] for s, part in units.items()}, image[0], weight)
        inner = {s: found[s][0] for s in reversed(passed.before(site)) if s != IMAGE}
        for s in inner:
            for start, more in gradients(passed, s, inner[s][None]).items():
                if start != IMAGE:
                    inner[start] = inner[start] + more[0]
        return inner

    def through(self, passed: Cut, inner: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each face passes on towards the target [image, tail, unit], by site."""
        return {
            s: by_face(
                (gradient * passed.constants[s].detach())[None], passed.constants[s].detach(), s,
                signed=self.signed[s],
            )[0]
            for s, gradient in inner.items()
        }  # fmt: skip

    def expand(
        self,
        passed: Cut,
        site: str,
        gradient: Tensor,
        faces: Sequence[Face],
        into: Mapping[Face, Into],
        weight: Tensor,
    ) -> None:
        """Share out what some faces of a site pass on, among those before."""
        axis = parse_site(site).dims.index(parse_site(site).unit_dim)
        size = max(1, self.n_rows // len(weight))
        for start in range(0, len(faces), size):
            some = faces[start : start + size]
            asked = gradient.new_zeros(len(some), *gradient.shape)
            for k, (_, tail, unit) in enumerate(some):
                one = gradient.select(axis, unit)
                if self.signed[site]:
                    above = passed.constants[site].detach().select(axis, unit) > 0
                    one = torch.where(above if tail == "upper" else ~above, one, 0)
                asked[k].select(axis, unit).copy_(one)
            units, image = parts(passed, gradients(passed, site, asked), self.signed)
            for k, face in enumerate(some):
                into[face].add({s: part[k] for s, part in units.items()}, image[k], weight)
