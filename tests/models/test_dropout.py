"""Parts left out while training, against slow loops over the drawn masks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polysem.errors import SpecError
from polysem.models.attention import BcosAttention, PositionAttention, attention_layer
from polysem.models.bcos import explanation_mode, logit_bias
from polysem.models.dropout import DropHead, set_drop_head_rate

TWINS = ("vitc_micro_patch4_gap_32", "bcos_vitc_micro_patch4_32")


def vit(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{"depth": 2, "num_classes": 5, **options}).double()


def images(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, model.in_chans, 32, 32, generator=generator, dtype=torch.float64)


@given(
    heads=st.integers(1, 12),
    images=st.integers(1, 40),
    rate=st.just("half") | st.floats(0, 0.999),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_masks_scale_what_stays(heads: int, images: int, rate: Any, seed: int) -> None:
    torch.manual_seed(seed)
    drop = DropHead(heads, rate)
    mask = drop.mask(images)
    kept = (mask > 0).sum(1)
    assert mask.shape == (images, heads) and (kept >= 1).all()
    factor = (torch.tensor(float(heads)) / kept)[:, None].expand_as(mask)
    assert torch.equal(mask[mask > 0], factor[mask > 0])
    torch.testing.assert_close(mask.sum(1), torch.full((images,), float(heads)))
    if rate == "half":
        assert (kept == heads - heads // 2).all()
    if rate == 0:
        assert (mask == 1).all()


def test_each_head_is_left_out_as_often_as_said() -> None:
    torch.manual_seed(0)
    for rate, heads, share in (("half", 4, 0.5), ("half", 3, 1 / 3), (0.3, 6, 0.3)):
        mask = DropHead(heads, rate).mask(40_000)
        torch.testing.assert_close(
            (mask == 0).float().mean(0), torch.full((heads,), share), rtol=0, atol=0.01
        )
        torch.testing.assert_close(mask.mean(0), torch.ones(heads), rtol=0, atol=0.02)
    # two heads, almost surely dropped: exactly one stays, either of them
    one = DropHead(2, 0.999).mask(10_000) > 0
    assert 0.4 < one[:, 0].float().mean() < 0.6


def test_different_images_lose_different_heads() -> None:
    torch.manual_seed(0)
    assert len(DropHead(4).mask(64).unique(dim=0)) == 6  # every pair of four heads


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("base", [PositionAttention, BcosAttention])
def test_attention_leaves_out_heads_before_they_are_projected(
    base: type[PositionAttention], fused: bool
) -> None:
    torch.manual_seed(0)
    layer = attention_layer(base, grid=(2, 3), drop_head_rate=0.5)(12, num_heads=3).double()
    layer.fused_attn = fused
    x = torch.randn(5, 6, 12, dtype=torch.float64)
    heads: list[Tensor] = []
    handle = layer.proj.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
    layer.eval()(x)
    torch.manual_seed(1)
    out = layer.train()(x)
    handle.remove()
    torch.manual_seed(1)
    mask = layer.drop_head.mask(5)
    assert 0 < (mask == 0).sum() < mask.numel()
    slow = heads[0].unflatten(-1, (3, 4)).clone()
    for image in range(5):
        for head in range(3):
            slow[image, :, head] *= float(mask[image, head])
    torch.testing.assert_close(heads[1], slow.flatten(2), rtol=0, atol=0)
    torch.testing.assert_close(out, layer.proj(slow.flatten(2)))


@pytest.mark.parametrize("name", TWINS)
def test_nothing_changes_at_rate_zero_or_in_evaluation(name: str) -> None:
    plain, x = vit(name), images(vit(name))
    for rate in (0.0, 0.9, "half"):
        model = vit(name, drop_head=rate)
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(model.eval()(x), plain.eval()(x))
        same = torch.equal(model.train()(x), plain.train()(x))
        assert same is (rate == 0.0)


def test_explanations_stay_complete() -> None:
    model = vit(TWINS[1], drop_head="half").eval()
    x = images(model).requires_grad_()
    with explanation_mode(model):
        logit = model(x)[1, 3]
    (w,) = torch.autograd.grad(logit, x)
    assert abs(((w * x).sum() - logit + logit_bias(model)).item()) <= 1e-10


def test_the_generator_decides_which_heads() -> None:
    model = vit(TWINS[0], drop_head="half").train()
    x = images(model)
    state = torch.get_rng_state()
    first, second = model(x), model(x)
    torch.set_rng_state(state)
    assert torch.equal(model(x), first) and not torch.equal(first, second)


def test_gradients_reach_the_heads_that_stay_and_no_others() -> None:
    drop, z = DropHead(4).train(), torch.randn(3, 4, 2, 5, requires_grad=True)
    torch.manual_seed(0)
    drop(z).sum().backward()
    torch.manual_seed(0)
    assert z.grad is not None
    assert torch.equal(z.grad, drop.mask(3)[:, :, None, None].expand(3, 4, 2, 5))


def test_the_rate_can_change_and_is_no_part_of_the_state() -> None:
    model = vit(TWINS[0], drop_head=0.1)
    set_drop_head_rate(model, 0.7)
    drops = [module for module in model.modules() if isinstance(module, DropHead)]
    assert [float(drop.rate) for drop in drops] == pytest.approx([0.7, 0.7])
    half = vit(TWINS[0], drop_head="half")
    set_drop_head_rate(half, 0.7)
    assert (half.blocks[0].attn.drop_head.mask(9) > 0).sum() == 18
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert float(other.blocks[1].attn.drop_head.rate) == pytest.approx(0.7)


def test_half_precision_keeps_the_factors() -> None:
    drop = DropHead(4).train()
    z = torch.ones(6, 4, 2, 3, dtype=torch.bfloat16)
    out = drop(z)
    assert out.dtype == torch.bfloat16 and set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("rate", [1.0, -0.1, "hlaf", float("nan"), True, [0.5]])
def test_other_rates_are_refused(rate: Any) -> None:
    with pytest.raises(SpecError, match="'half' or a rate from 0 to below 1"):
        vit(TWINS[0], drop_head=rate)


def test_a_changed_rate_compiles_nothing_anew() -> None:
    drop = DropHead(4, 0.1).train()
    graphs: list[Any] = []

    def count(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(drop, backend=count)
    z = torch.ones(64, 4, 1, 1)
    for rate in (0.0, 0.2, 0.9):
        set_drop_head_rate(drop, rate)
        assert bool((compiled(z) == 1).all()) is (rate == 0.0)
    assert len(graphs) == 1
