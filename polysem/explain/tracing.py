"""A run's exemplars shown to its cut model again: what each firing came from by direct paths.

`edges` averages it for every unit, `feeding` sums it over groups of units. Also which sites are
traced, and which images stand for a class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.errors import SpecError
from polysem.explain.cuts import CLASS, Norms, cut, gradients, parts, prepared, signed_sites
from polysem.explain.run_exemplars import Exemplars, image_batches, is_bcos, pointed
from polysem.explain.target import sites_of
from polysem.models.load import LoadedModel
from polysem.sites import Site, parse_site, select_sites
from polysem.store.run import Run

__all__ = ["Traced", "class_exemplars", "method_of", "shown", "trace", "traced_sites"]

#: What is traced by default: neurons, channels, and the neurons before classification.
_NEURONS = ("mlp.hook_post", "hook_post", "hook_pooled")

#: Images whose graphs are kept at a time, and rows of W(x) in one backward pass.
_AT_A_TIME = {"cpu": (4, 64), "cuda": (32, 1024)}


@dataclass(frozen=True)
class Traced:
    """Some exemplars of one site with what their firing came from, by direct paths.

    Attributes
    ----------
    images : list of int
        Index in the data.
    at : list of tuple of int64 array
        For each image, the index of its exemplars into [tail, unit, rank].
    value : float64 array [row, image]
        How strongly each fired; NaN where an image has fewer exemplars.
    parts : dict of str to Tensor [row, image, tail, unit]
        By earlier site: what each face contributed.
    image : Tensor [row, image]
        What came from the image around all sites.
    """

    images: list[int]
    at: list[tuple[npt.NDArray[np.int64], ...]]
    value: npt.NDArray[np.float64]
    parts: Mapping[str, Tensor]
    image: Tensor

    def places(
        self, shape: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return row, image and flat index into [tail, unit] of each exemplar."""
        row = np.concatenate([np.arange(len(at[0])) for at in self.at])
        image = np.repeat(np.arange(len(self.at)), [len(at[0]) for at in self.at])
        tail, unit = (np.concatenate([at[axis] for at in self.at]) for axis in (0, 1))
        return row, image, tail * shape[1] + unit


def traced_sites(run: Run, loaded: LoadedModel, globs: str | Iterable[str] | None) -> list[str]:
    """Return the sites that are traced, in network order.

    Raises
    ------
    SpecError
        If a glob matches nothing, or there is none.
    """
    known = sites_of(loaded.model)
    if globs is not None:
        return select_sites(known, globs)
    chosen = [s for s in run.sites if s in known and (parse_site(s).part in _NEURONS)]
    if not chosen:
        raise SpecError(
            f"{run.path} recorded no neurons or channels, which are traced by default: name sites "
            f"of the model with --sites, such as {', '.join(known[-3:])}"
        )
    return [site for site in known if site in chosen]


def class_exemplars(run: Run, limit: int, of_class: int | None = None) -> Exemplars:
    """Return images that the model takes for each class, or for one, drawn at random."""
    images = run.images.sample(frac=1, random_state=0).dropna(subset="prediction")
    if of_class is not None:
        images = images[images["prediction"] == of_class]
    rank = images.groupby("prediction").cumcount().to_numpy()
    there = rank < limit
    unit = images["prediction"].to_numpy().astype(np.int64)[there]
    shape = (1, int(unit.max(initial=-1)) + 1, limit)
    return Exemplars(
        Site(CLASS, None, CLASS, ("image", "class")),
        images["image"].to_numpy().astype(np.int64)[there],
        (np.zeros_like(unit), unit, rank[there].astype(np.int64)),
        np.full(len(unit), -1),
        shape,
        ["upper"],
    )


def trace(
    loaded: LoadedModel,
    source: ImageData,
    sites: Sequence[str],
    site: str,
    each: Exemplars,
    takers: Sequence[Callable[[Traced], None]],
    *,
    norms: Norms,
) -> Iterator[int]:
    """Share out the firing of all exemplars of a site among the faces of the sites before it.

    Yields how many exemplars were done, each time that some were.
    """
    like = next(loaded.model.parameters())
    n_images, n_rows = _AT_A_TIME.get(like.device.type, (8, 64))
    signed = signed_sites(loaded.model, sites)
    read = [] if site in (*sites, CLASS) else [site]
    for images in image_batches({site: each}, n_images):
        x = shown(loaded, source, images)
        mine = [np.flatnonzero(each.image == image) for image in images]
        with prepared(loaded.model, bcos=is_bcos(loaded), norms=norms):
            passed = cut(loaded.model, x, sites, read=read)
            arrived = passed.arrived[site]
            for at, value, ones in pointed(each, mine, arrived, passed.n_prefix_tokens, n_rows):
                units, image = parts(passed, gradients(passed, site, ones), signed)
                for take in takers:
                    take(Traced(images, at, value, units, image))
        yield sum(len(rows) for rows in mine)


def method_of(loaded: LoadedModel, norms: Norms) -> str:
    """Return how contributions are found, in a word or two."""
    if is_bcos(loaded):
        return "bcos"
    return "attribution" if norms == "free" else "attribution, norms held"


def shown(loaded: LoadedModel, source: ImageData, images: Sequence[int]) -> Tensor:
    """Return what the model is given of some images [image, channel, y, x]."""
    like = next(loaded.model.parameters())
    pixels = torch.stack([loaded.transform(source.read(i)) for i in images])
    return loaded.transform.normalize(pixels.to(like.device)).to(like.dtype)
