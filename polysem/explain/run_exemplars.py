"""A run's exemplars shown to its model again, each attributed to what its activation came from.

One forward pass serves all units of all sites that have an image among their exemplars; their
attributions are batched vector-Jacobian products. `run_maps` attributes to the image, `upstream`
to the units of an earlier site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polysem.data.again import load_again
from polysem.data.dataset import ImageData
from polysem.device import choose_device
from polysem.errors import RunError, SpecError
from polysem.explain.forward import explaining, forward
from polysem.explain.linear import require_bcos, summarising
from polysem.models.load import LoadedModel, load_model
from polysem.progress import progress_bar
from polysem.sites import Site, parse_site
from polysem.store.run import Run

__all__ = [
    "Attributed", "Exemplars", "attribute", "image_batches", "is_bcos", "open_again", "pointed",
    "site_exemplars",
]  # fmt: skip

#: Images whose graphs are kept at a time, and rows of W(x) in one backward pass.
_AT_A_TIME = {"cpu": (4, 32), "cuda": (32, 512)}

_Index: TypeAlias = tuple[npt.NDArray[np.int64], ...]


@dataclass(frozen=True)
class Exemplars:
    """The exemplars of one site, one row each.

    Attributes
    ----------
    site : Site
    image : int64 array [row]
        Index in the data.
    at : tuple of int64 array
        Index of each row into [tail, unit, rank].
    position : int64 array [row]
        Patch or place where it peaks, counted row by row; -1 where there are none.
    shape : tuple of int
        Sizes of tail, unit and rank.
    tails : list of str
    """

    site: Site
    image: npt.NDArray[np.int64]
    at: _Index
    position: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    tails: list[str]


@dataclass(frozen=True)
class Attributed:
    """Some exemplars of one site with what their activation came from.

    Attributes
    ----------
    site : str
    at : list of tuple of int64 array
        For each image, the index of its exemplars into [tail, unit, rank].
    value : float64 array [row, image]
        How strongly the unit fired, towards its tail; NaN where an image has fewer exemplars.
    contribution : Tensor [row, image, …]
        Activation times gradient at the start, towards firing; zero where there is no exemplar.
    """

    site: str
    at: list[_Index]
    value: npt.NDArray[np.float64]
    contribution: Tensor

    def fill(self, array: npt.NDArray[np.floating], numbers: npt.ArrayLike | Tensor) -> None:
        """Put numbers [row, image, …] where they belong in an array [tail, unit, rank, …]."""
        found = numbers.cpu().numpy() if isinstance(numbers, Tensor) else np.asarray(numbers)
        for i, at in enumerate(self.at):
            array[at] = found[: len(at[0]), i]


def open_again(
    run: Run, model: str | Path | LoadedModel, data: str | ImageData | None, device: str
) -> tuple[LoadedModel, ImageData]:
    """Return the model and the images that a run was probed with.

    Raises
    ------
    RunError
        If these are others.
    DataError
        If the images are not where they were.
    """
    place = choose_device(device)
    loaded = model if isinstance(model, LoadedModel) else load_model(str(model), device=place)
    probed = run.manifest["model"]
    if loaded.sha256 != probed["sha256"]:
        raise RunError(
            f"{run.path} was probed with other weights than those of {loaded.spec}: "
            f"{probed['spec']}, digest {probed['sha256'][:12]} and not {loaded.sha256[:12]}"
        )
    source = data if isinstance(data, ImageData) else load_again(run.manifest["data"], data)
    if source.fingerprint != run.manifest["data"]["fingerprint"]:
        raise RunError(f"{source.name} does not hold the images that {run.path} was probed on")
    return loaded, source


def site_exemplars(run: Run, name: str, limit: int | None) -> Exemplars:
    """Return the exemplars of a site, so many of each tail at most."""
    units = run.units(name)
    top = units["top_image"].to_numpy()[..., :limit]
    at = np.nonzero(~np.isnan(top))
    if "top_y" in units:
        width = units.sizes["x"]
        places = units["top_y"].to_numpy() * width + units["top_x"].to_numpy()
        position = places[..., :limit][at].astype(np.int64)
    else:
        position = np.full(len(at[0]), -1)
    tails = [str(tail) for tail in units["tail"].to_numpy()]
    return Exemplars(parse_site(name), top[at].astype(np.int64), at, position, top.shape, tails)


def is_bcos(loaded: LoadedModel) -> bool:
    """Tell whether gradients are rows of W(x), or those of a network that bends."""
    try:
        require_bcos(loaded.model)
    except SpecError:
        return False
    return True


def attribute(
    loaded: LoadedModel,
    source: ImageData,
    found: Mapping[str, Exemplars],
    take: Callable[[Attributed], None],
    *,
    starts: Mapping[str, str] | None = None,
    progress: bool = True,
) -> None:
    """Attribute the activation of every exemplar where it peaks.

    Gradients of B-cos networks are rows of W(x), so that contributions make up the activation, or
    what of it goes through the start.

    Parameters
    ----------
    loaded : LoadedModel
    source : ImageData
    found : mapping of str to Exemplars
        By site.
    take : callable
        Gets the attributions, some exemplars of a site at a time.
    starts : mapping of str to str, optional
        For each site, the earlier site to whose activation it is attributed; by default to the
        model's input.
    progress : bool, default True
    """
    like = next(loaded.model.parameters())
    n_images, n_rows = _AT_A_TIME.get(like.device.type, (8, 64))
    # keeps the attention pattern, which goes backwards for many rows at a time
    prepare = partial(summarising if is_bcos(loaded) else explaining, kernels_for_rows=True)
    with progress_bar(unit="maps", show=progress) as move:
        done, total = 0, sum(len(each.image) for each in found.values())
        for images in image_batches(found, n_images):
            pixels = torch.stack([loaded.transform(source.read(i)) for i in images])
            x = loaded.transform.normalize(pixels.to(like.device)).to(like.dtype)
            seen: dict[str, Tensor] = {}
            with prepare(loaded.model):
                x.requires_grad_()
                points: dict[str, Callable[[Tensor], Tensor | None]] = {
                    **{name: partial(_keep, seen, name) for name in found},
                    **{n: partial(_pass_through, seen, n) for n in (starts or {}).values()},
                }
                _, prefix, _ = forward(loaded.model, x, points)
                for name, each in found.items():
                    start = seen[starts[name]] if starts else x
                    mine = [np.flatnonzero(each.image == image) for image in images]
                    _attribute_site(each, mine, seen[name], start, prefix, n_rows, take)
                    done += sum(len(rows) for rows in mine)
            move("explain", done, total)


def image_batches(found: Mapping[str, Exemplars], size: int) -> list[list[int]]:
    """Return the images that are exemplars, those of equally many units together."""
    every = np.concatenate([each.image for each in found.values()])
    images, counts = np.unique(every, return_counts=True)
    order = [int(i) for i in images[np.argsort(-counts, kind="stable")]]
    return [order[i : i + size] for i in range(0, len(order), size)]


def _attribute_site(
    each: Exemplars,
    mine: Sequence[npt.NDArray[np.int64]],
    activation: Tensor,
    start: Tensor,
    prefix: int,
    n_rows: int,
    take: Callable[[Attributed], None],
) -> None:
    for at, value, ones in pointed(each, mine, activation, prefix, n_rows):
        (gradient,) = torch.autograd.grad(
            activation, start, ones, retain_graph=True, is_grads_batched=True,
            materialize_grads=True,
        )  # fmt: skip
        take(Attributed(each.site.name, at, value, gradient * start.detach()))


def pointed(
    each: Exemplars,
    mine: Sequence[npt.NDArray[np.int64]],
    activation: Tensor,
    prefix: int,
    n_rows: int,
) -> Iterator[tuple[list[_Index], npt.NDArray[np.float64], Tensor]]:
    """Yield what points at the exemplars of some images, so many rows and images at a time.

    Parameters
    ----------
    each : Exemplars
    mine : sequence of int64 array
        For each image, the rows of `each` that are its exemplars.
    activation : Tensor [image, …]
        At their site.
    prefix : int
        Tokens before the patches.
    n_rows : int
        Rows times images at a time, at most.

    Yields
    ------
    at : list of tuple of int64 array
        For each image, the index of its exemplars into [tail, unit, rank].
    value : float64 array [row, image]
        How strongly the unit fired, towards its tail; NaN where an image has fewer exemplars.
    ones : Tensor [row, image, …]
        The derivative of the value by the activation; zero where there is no exemplar.
    """
    size = max(1, n_rows // len(mine))
    for first in range(0, max(len(rows) for rows in mine), size):
        chunk = [rows[first : first + size] for rows in mine]
        ones = activation.new_zeros(max(len(rows) for rows in chunk), *activation.shape)
        value = np.full((len(ones), len(chunk)), np.nan)
        for i, rows in enumerate(chunk):
            for k, row in enumerate(rows):
                value[k, i] = _point_at(each, row, activation, ones[k], i, prefix)
        yield [tuple(axis[rows] for axis in each.at) for rows in chunk], value, ones


def _point_at(
    each: Exemplars, row: int, activation: Tensor, ones: Tensor, i: int, prefix: int
) -> float:
    """Point at one unit of image i in `ones`, and return how strongly it fired."""
    tail, unit = each.tails[each.at[0][row]], int(each.at[1][row])
    sign, dims, position = (1 if tail == "upper" else -1), each.site.dims, each.position[row]
    if "head" in dims:  # the derivative of a length is the direction
        z = activation[i, prefix + position, unit].detach()
        length = float(torch.linalg.vector_norm(z))
        ones[i, prefix + position, unit] = z / max(length, 1e-30)
        return length
    index: tuple[int, ...]
    if "channel" in dims:
        index = (i, unit, *divmod(int(position), activation.shape[3]))
    else:
        index = (i, unit) if position < 0 else (i, prefix + int(position), unit)
    ones[index] = sign
    return sign * float(activation.detach()[index])


def _keep(seen: dict[str, Tensor], name: str, activation: Tensor) -> None:
    seen[name] = activation


def _pass_through(seen: dict[str, Tensor], name: str, activation: Tensor) -> Tensor:
    """Keep what the network goes on with: some sites show a view that it would not read."""
    seen[name] = activation.view_as(activation)
    return seen[name]
