"""Whether maps are faithful: what the model says when the pixels they point to go, or come.

Pixel deletion and insertion are from Petsiuk, Das, Saenko: RISE, arXiv 1806.07421, section 4.3;
mask energy is the energy-based pointing game of Score-CAM (Wang et al., arXiv 1910.01279) with
the exact outline of the object in place of a bounding box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from einops import rearrange
from scipy.ndimage import gaussian_filter
from torch import Tensor

from polysem.errors import DataError, SpecError
from polysem.explain.forward import require_finite_map

__all__ = [
    "Baseline",
    "area_under",
    "baseline_of",
    "check_baseline",
    "deletion_curve",
    "insertion_curve",
    "mask_energy",
]

Baseline = Literal["mean", "blur"]


def baseline_of(pixels: Tensor, kind: Baseline) -> Tensor:
    """Return what takes the place of pixels [image, channel, y, x] that are away.

    Parameters
    ----------
    pixels : float Tensor
        In [0, 1].
    kind : {"mean", "blur"}
        Each picture's mean colour, or the picture blurred with σ of an eighth of its shorter side,
        which keeps coarse colours.
    """
    check_baseline(kind)
    if kind == "mean":
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    sigma = min(pixels.shape[2:]) / 8
    blurred = gaussian_filter(pixels.cpu().numpy(), sigma, mode="reflect", axes=(2, 3))
    return torch.from_numpy(blurred).to(pixels)


def check_baseline(kind: str) -> None:
    """Refuse a baseline that is not known, with a `SpecError`."""
    if kind not in get_args(Baseline):
        raise SpecError(f"no baseline is called {kind!r}; choose mean or blur")


def deletion_curve(
    predict: Callable[[Tensor], Tensor],
    pixels: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Baseline = "mean",
    steps: int = 16,
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """Return the confidence as pixels are taken away, those of the highest contribution first.

    Parameters
    ----------
    predict : callable
        From pixels [image, channel, y, x] to confidences [image, class].
    pixels : float Tensor [image, channel, y, x]
        In [0, 1].
    maps : Tensor [image, y, x]
        Signed contributions. Ties are broken at random, as a map that is the same everywhere
        prefers no pixel.
    targets : int Tensor [image]
        The class of each image whose confidence is followed.
    baseline : {"mean", "blur"}
        As in `baseline_of`.
    steps : int
        Equal steps from nothing to everything.
    batch_size : int
        Pictures per call of `predict`.
    seed : int
        Of the order of ties.

    Returns
    -------
    Tensor [image, step]
        Of ``steps + 1`` confidences, the first that of the untouched picture.

    Raises
    ------
    DataError
        If maps and pixels do not fit.
    NonFiniteError
        If a map holds NaN or infinity.
    """
    rank, away = _ranks(maps, pixels, seed), baseline_of(pixels, baseline)
    return _curve(predict, pixels, away, rank, targets, steps, batch_size)


def insertion_curve(
    predict: Callable[[Tensor], Tensor],
    pixels: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Baseline = "mean",
    steps: int = 16,
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """Return the confidence as pixels are put onto the baseline, the highest contribution first.

    As `deletion_curve`, the other way round: the last of the ``steps + 1`` confidences is that of
    the untouched picture.
    """
    rank, away = _ranks(maps, pixels, seed), baseline_of(pixels, baseline)
    return _curve(predict, away, pixels, rank, targets, steps, batch_size)


def area_under(curve: Tensor) -> Tensor:
    """Return the area under curves [image, step] over the share of pixels from 0 to 1, [image].

    Deletion should be small, insertion large.
    """
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def mask_energy(maps: Tensor, masks: Tensor) -> Tensor:
    """Return which share of the positive contribution lies inside of masks, [image].

    In [0, 1], the higher the better; a map that is the same everywhere gets the mask's share of
    the picture, and one without anything positive 0.

    Parameters
    ----------
    maps : Tensor [image, y, x]
    masks : bool Tensor [image, y, x]

    Raises
    ------
    DataError
        If shapes differ.
    NonFiniteError
        If a map holds NaN or infinity.

    >>> mask_energy(torch.tensor([[[3.0, 1.0, -9.0]]]), torch.tensor([[[True, False, True]]]))
    tensor([0.7500], dtype=torch.float64)
    """
    if maps.shape != masks.shape:
        raise DataError(f"maps of shape {tuple(maps.shape)} do not fit masks of {masks.shape}")
    require_finite_map(maps, "this method")
    positive = maps.double().clamp_min(0)
    total = positive.sum((1, 2))
    inside = (positive * masks).sum((1, 2))
    return torch.where(total > 0, inside / total.where(total > 0, 1), 0)


def _curve(
    predict: Callable[[Tensor], Tensor],
    before: Tensor,
    after: Tensor,
    rank: Tensor,
    targets: Tensor,
    steps: int,
    batch_size: int,
) -> Tensor:
    """Return the confidences while `before` turns into `after`, pixel by pixel in order of rank."""
    if steps < 1:
        raise SpecError(f"a curve needs at least 1 step, not {steps}")
    n_pixels = rank.shape[1] * rank.shape[2]
    counts = torch.linspace(0, n_pixels, steps + 1, device=rank.device).round().long()
    per_call = max(1, batch_size // (steps + 1))
    parts = []
    for start in range(0, len(rank), per_call):
        some = slice(start, start + per_call)
        changed = rank[some, None, None] < counts[:, None, None, None]
        mixed = torch.where(changed, after[some, None], before[some, None])
        said = predict(rearrange(mixed, "image step c y x -> (image step) c y x"))
        asked = targets[some].repeat_interleave(steps + 1)[:, None]
        parts.append(said.gather(1, asked).view(-1, steps + 1))
    return torch.cat(parts)


def _ranks(maps: Tensor, pixels: Tensor, seed: int) -> Tensor:
    """Return the rank of each pixel [image, y, x], 0 for the highest contribution."""
    if maps.shape != pixels.shape[:1] + pixels.shape[2:]:
        raise DataError(
            f"maps of shape {tuple(maps.shape)} do not fit pixels of shape {tuple(pixels.shape)}"
        )
    require_finite_map(maps, "this method")
    flat = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.rand(flat.shape, generator=generator).argsort(dim=1).to(flat.device)
    order = shuffle.gather(1, flat.gather(1, shuffle).argsort(dim=1, descending=True, stable=True))
    rank = torch.empty_like(order)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return rank.scatter_(1, order, places).view(maps.shape)
