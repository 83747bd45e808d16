"""Deletion, insertion and mask energy: known answers on a model that only adds pixels up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polysem.errors import DataError, NonFiniteError, SpecError
from polysem.explain.faithfulness import (
    area_under,
    baseline_of,
    deletion_curve,
    insertion_curve,
    mask_energy,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PIXELS = noise(3, 2, 5, 8)
WEIGHTS = noise(2, 2, 5, 8, seed=1) - 0.5
TARGETS = torch.tensor([1, 0, 1])


def predict(pixels: Tensor) -> Tensor:
    """Two "classes", each a weighted sum of pixels: what a pixel contributes is known exactly."""
    return torch.einsum("icyx,kcyx->ik", pixels, WEIGHTS)


def contributions(pixels: Tensor) -> Tensor:
    """What a class loses when a pixel becomes the mean colour."""
    away = baseline_of(pixels, "mean")
    return ((pixels - away) * WEIGHTS[TARGETS]).sum(1)


def slow_curve(maps: Tensor, steps: int, *, insertion: bool) -> list[list[float]]:
    """Change pixel after pixel, one image and one step at a time."""
    curves = []
    for pixels, values, target in zip(PIXELS, maps, TARGETS, strict=True):
        away = pixels.mean((1, 2))
        order = sorted((-values[y, x].item(), y, x) for y in range(5) for x in range(8))
        curve = []
        for step in range(steps + 1):
            changed = order[: round(step * 40 / steps)]
            mixed = away[:, None, None].expand_as(pixels).clone() if insertion else pixels.clone()
            for _, y, x in changed:
                mixed[:, y, x] = pixels[:, y, x] if insertion else away
            curve.append(predict(mixed[None])[0, target].item())
        curves.append(curve)
    return curves


@pytest.mark.parametrize("batch_size", [1, 13, 1000])
def test_curves_are_those_of_the_slow_loop(batch_size: int) -> None:
    maps = noise(3, 5, 8, seed=2) - 0.5
    options = {"steps": 8, "batch_size": batch_size}
    deleted = deletion_curve(predict, PIXELS, maps, TARGETS, **options)
    inserted = insertion_curve(predict, PIXELS, maps, TARGETS, **options)
    torch.testing.assert_close(deleted, torch.tensor(slow_curve(maps, 8, insertion=False)).double())
    torch.testing.assert_close(inserted, torch.tensor(slow_curve(maps, 8, insertion=True)).double())


def test_ends_are_the_picture_and_the_baseline() -> None:
    maps = noise(3, 5, 8)
    whole = predict(PIXELS).gather(1, TARGETS[:, None])[:, 0]
    for baseline in ("mean", "blur"):
        gone = predict(baseline_of(PIXELS, baseline)).gather(1, TARGETS[:, None])[:, 0]
        deleted = deletion_curve(predict, PIXELS, maps, TARGETS, baseline=baseline)
        inserted = insertion_curve(predict, PIXELS, maps, TARGETS, baseline=baseline)
        assert deleted.shape == (3, 17)
        torch.testing.assert_close(deleted[:, 0], whole)
        torch.testing.assert_close(deleted[:, -1], gone)
        torch.testing.assert_close(inserted[:, 0], gone)
        torch.testing.assert_close(inserted[:, -1], whole)


def test_no_order_beats_the_true_contributions() -> None:
    true = contributions(PIXELS)
    options = {"steps": 40}
    best_down = area_under(deletion_curve(predict, PIXELS, true, TARGETS, **options))
    best_up = area_under(insertion_curve(predict, PIXELS, true, TARGETS, **options))
    for other in [noise(3, 5, 8, seed=s) for s in range(5)] + [-true, torch.zeros_like(true)]:
        down = area_under(deletion_curve(predict, PIXELS, other, TARGETS, **options))
        up = area_under(insertion_curve(predict, PIXELS, other, TARGETS, **options))
        assert (down > best_down).all()
        assert (up < best_up).all()


def test_ties_are_broken_at_random_but_the_same_way() -> None:
    flat = torch.zeros(3, 5, 8, dtype=torch.float64)
    one, again, other = (
        deletion_curve(predict, PIXELS, flat, TARGETS, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_area_under_a_line() -> None:
    curves = torch.stack([torch.ones(5), torch.linspace(1, 0, 5)])
    assert area_under(curves).tolist() == [1, 0.5]


def test_a_blur_keeps_the_mean_colour_and_flattens() -> None:
    pixels = noise(1, 3, 32, 24)
    blurred = baseline_of(pixels, "blur")
    torch.testing.assert_close(blurred.mean((2, 3)), pixels.mean((2, 3)), rtol=0.02, atol=0)
    assert blurred.std() < 0.25 * pixels.std()
    assert baseline_of(pixels.float(), "blur").dtype == torch.float32


def test_mask_energy_of_known_maps() -> None:
    masks = torch.zeros(4, 6, 5, dtype=torch.bool)
    masks[:, 1:4, :2] = True
    maps = torch.stack([
        torch.ones(6, 5), masks[0].float() - 0.5, 0.5 - masks[0].float(), -torch.ones(6, 5)
    ])  # fmt: skip
    assert mask_energy(maps, masks).tolist() == pytest.approx([6 / 30, 1, 0, 0])
    assert mask_energy(maps[:1] * 1e-30, masks[:1]).item() == pytest.approx(0.2)


def test_what_does_not_fit_is_refused() -> None:
    maps = noise(3, 5, 8)
    with pytest.raises(DataError, match="do not fit"):
        deletion_curve(predict, PIXELS, maps[:, :4], TARGETS)
    with pytest.raises(DataError, match="do not fit"):
        mask_energy(maps, torch.ones(3, 5, 7, dtype=torch.bool))
    maps[2, 0, 0] = torch.inf
    for refused in (deletion_curve, insertion_curve):
        with pytest.raises(NonFiniteError, match="image 2"):
            refused(predict, PIXELS, maps, TARGETS)
    with pytest.raises(NonFiniteError, match="image 2"):
        mask_energy(maps, torch.ones(3, 5, 8, dtype=torch.bool))
    with pytest.raises(SpecError, match="at least 1 step"):
        deletion_curve(predict, PIXELS, torch.zeros(3, 5, 8), TARGETS, steps=0)
    with pytest.raises(SpecError, match="choose mean or blur"):
        baseline_of(PIXELS, "black")  # type: ignore[arg-type]
