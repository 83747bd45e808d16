"""Interactions against finite differences, against ablation from scratch, and in a network
whose heads are known.
"""

from itertools import product
from typing import Any

import pytest
import torch
from small_models import images_for, small_vit
from torch import Tensor
from toy_heads import toy_vit

from polysem.probe.gates import GatedViT, frozen, rotated_heads, target_cost
from polysem.probe.head_batch import all_exact
from polysem.probe.interactions import by_gradients, by_hessian, exact_pairs, shapley_pairs

NETWORKS = ["class_token", "registers_layerscale_qknorm", "bcos", "bcos_conv_stem"]
ALL = [(i, j) for i in range(9) for j in range(i + 1, 9)]
LOSS, MARGIN = target_cost("loss"), target_cost("margin")


@pytest.fixture(params=NETWORKS)
def setting(request: pytest.FixtureRequest) -> tuple[GatedViT, Tensor, Tensor]:
    model = small_vit(request.param)
    return GatedViT(model), images_for(model), torch.tensor([1, 4])


def cost_at(
    vit: GatedViT, images: Tensor, labels: Tensor, gates: Tensor, bases: Any = None
) -> Tensor:
    """Return the loss [image] with gates [head] for all images alike, by a whole pass."""
    shaped = gates.view(1, len(vit.layers), vit.n_heads)
    with torch.no_grad():
        edits = vit.edits(shaped, bases=bases)
        return LOSS(vit.finish(vit.embed(images), 0, edits), labels)


def slope_at(vit: GatedViT, images: Tensor, labels: Tensor, gates: Tensor, j: int) -> Tensor:
    """Return the derivative by gate j; B-cos layers have kinks in theirs, so the step is small."""
    step = torch.zeros_like(gates)
    step[j] = 1e-5
    up, down = (cost_at(vit, images, labels, gates + way * step) for way in (1, -1))
    return (up - down) / 2e-5


def mixed_at(vit: GatedViT, images: Tensor, labels: Tensor, i: int, j: int) -> Tensor:
    """Return the mixed second derivative by gates i and j at 1."""
    found, step = torch.zeros(2, dtype=torch.float64), 5e-5
    for way, other in product((1, -1), repeat=2):
        gates = torch.ones(9, dtype=torch.float64)
        gates[i] += way * step
        gates[j] += other * step
        found += way * other * cost_at(vit, images, labels, gates)
    return found / (4 * step**2)


def test_the_hessian_equals_finite_differences(setting: tuple[GatedViT, Tensor, Tensor]) -> None:
    vit, images, labels = setting
    with frozen(vit.model):
        found = by_hessian(vit, images, labels, LOSS, rows=4)
        ones = torch.ones(9, dtype=torch.float64)
        expected = torch.zeros(2, 9, 9, dtype=torch.float64)
        for i, j in ALL:
            expected[:, i, j] = expected[:, j, i] = mixed_at(vit, images, labels, i, j)
        slopes = torch.stack([slope_at(vit, images, labels, ones, j) for j in range(9)], dim=1)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.pairs, expected, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(found.slope, slopes, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.clean, cost_at(vit, images, labels, ones))


def test_gradients_equal_finite_differences(setting: tuple[GatedViT, Tensor, Tensor]) -> None:
    vit, images, labels = setting
    with frozen(vit.model):
        found = by_gradients(vit, images, labels, LOSS, rows=4)
        ones = torch.ones(9, dtype=torch.float64)
        clean = [slope_at(vit, images, labels, ones, j) for j in range(9)]
        expected = torch.zeros(2, 9, 9, dtype=torch.float64)
        for i in range(9):
            off = ones.clone()
            off[i] = 0
            torch.testing.assert_close(found.alone[:, i], cost_at(vit, images, labels, off))  # type: ignore[index]
            for j in range(9):
                if i != j:
                    expected[:, i, j] = clean[j] - slope_at(vit, images, labels, off, j)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.pairs, expected, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(found.slope, torch.stack(clean, dim=1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rotated", [False, True])
def test_exact_pairs_equal_ablation_from_scratch(
    setting: tuple[GatedViT, Tensor, Tensor], rotated: bool
) -> None:
    vit, images, labels = setting
    generator = torch.Generator().manual_seed(0)
    bases = {n: rotated_heads(3, 8, generator) for n in range(3)} if rotated else None
    pairs = [ALL[k] for k in (30, 0, 7, 8, 21, 35, 2)]

    def off(*heads: int) -> Tensor:
        gates = torch.ones(9, dtype=torch.float64)
        gates[list(heads)] = 0
        return cost_at(vit, images, labels, gates, bases)

    with frozen(vit.model):
        found = exact_pairs(vit, images, labels, LOSS, pairs, rows=5, bases=bases)
        whole = all_exact(vit, images, labels, LOSS, rows=64, bases=bases).pairs
        expected = [off(i, j) - off(i) - off(j) + off() for i, j in pairs]
    torch.testing.assert_close(found, torch.stack(expected, dim=1))
    for k, (i, j) in enumerate(pairs):
        torch.testing.assert_close(whole[:, i, j], found[:, k])
        torch.testing.assert_close(whole[:, j, i], found[:, k])


def test_as_many_images_as_a_model_is_wide_are_no_bases() -> None:
    """Bases have a row for each feature, references one for each image."""
    model = small_vit("class_token", dtype=torch.float32)
    vit, width = GatedViT(model), 24
    images, labels = images_for(model).repeat(width // 2, 1, 1, 1), torch.arange(width) % 5
    generator = torch.Generator().manual_seed(0)
    bases = {n: rotated_heads(3, 8, generator).float() for n in range(3)}
    assert len(bases[0]) == width
    with frozen(model):
        few, many = (
            exact_pairs(vit, images, labels, LOSS, ALL[:4], rows=rows, bases=bases)
            for rows in (width, 3 * width)
        )
    torch.testing.assert_close(few, many)


@pytest.mark.parametrize("method", [by_gradients, by_hessian])
def test_neither_rows_nor_other_images_matter(method: Any) -> None:
    model = small_vit("bcos")
    vit, images, labels = GatedViT(model), images_for(model), torch.tensor([1, 4])
    with frozen(model):
        whole = method(vit, images, labels, MARGIN, rows=64)
        for k in range(2):
            one = method(vit, images[k : k + 1], labels[k : k + 1], MARGIN, rows=1)
            torch.testing.assert_close(one.pairs[0], whole.pairs[k])
            torch.testing.assert_close(one.slope[0], whole.slope[k])


@pytest.mark.parametrize("seed", range(10))
def test_a_network_built_by_hand(seed: int) -> None:
    model, images, labels, pairs = toy_vit(seed)
    vit = GatedViT(model)
    signals = images[:, :, 0, 0]
    n = len(vit.heads)
    above = [(i, j) for i in range(n) for j in range(i + 1, n)]
    with frozen(model):
        found = exact_pairs(vit, images, labels, MARGIN, above, rows=64)
    by_pair = dict(zip(above, found.T, strict=True))
    torch.testing.assert_close(by_pair.pop(pairs["redundant"]), signals[:, 0])
    torch.testing.assert_close(by_pair.pop(pairs["fighting"]), -2 * signals[:, 1])
    # the independent pair, and all pairs that were not built to meet
    assert max(value.abs().max() for value in by_pair.values()) < 1e-12


def test_opposite_writes_fight_and_equal_writes_are_redundant_by_the_loss() -> None:
    """In a network without MLP the loss is convex in what heads write."""
    model, images, labels, pairs = toy_vit(0)
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight.zero_()
        redundant, fighting = pairs["redundant"], pairs["independent"]
        model.blocks[0].attn.proj.weight.view(12, 6, 2)[:, fighting[0]] *= -1
    vit = GatedViT(model)
    with frozen(model):
        both = exact_pairs(vit, images, labels, LOSS, [redundant, fighting], rows=8)
        hessian = by_hessian(vit, images, labels, LOSS, rows=8).pairs
    assert (both[:, 0] > 0).all() and (both[:, 1] < 0).all()
    assert (hessian[:, redundant[0], redundant[1]] > 0).all()
    assert (hessian[:, fighting[0], fighting[1]] < 0).all()


def test_the_shapley_interaction_averages_over_sets_of_other_heads() -> None:
    model = small_vit("class_token", depth=1)
    vit, images, labels = GatedViT(model), images_for(model), torch.tensor([1, 4])
    gates = torch.ones(3, dtype=torch.float64)

    def off(*heads: int) -> Tensor:
        closed = gates.clone()
        closed[list(heads)] = 0
        return cost_at(vit, images, labels, closed)

    def interaction(i: int, j: int, *others: int) -> Tensor:
        return off(i, j, *others) - off(i, *others) - off(j, *others) + off(*others)

    n = 40
    with frozen(model):
        found = shapley_pairs(vit, images, labels, LOSS, [(0, 2)], rows=7, n_samples=n)[:, 0]
        alone, beside = interaction(0, 2), interaction(0, 2, 1)
    times = (found - alone) / (beside - alone) * n  # how often head 1 was away, for either image
    torch.testing.assert_close(times, times.round(), atol=1e-6, rtol=0)
    assert times[0].round() == times[1].round()
    assert n / 4 < times[0] < 3 * n / 4
