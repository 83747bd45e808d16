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
from polysem.models.attention import BcosAttention, Kept, PositionAttention, attention_layer
from polysem.models.bcos import explanation_mode, logit_bias
from polysem.models.dropout import (
    DropHead,
    PatchDropout,
    SpatialDropout,
    drop_channels,
    set_drop_head_rate,
)
from polysem.models.hooked import HookedVisionModel

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


def test_timm_s_dropout_scales_what_stays() -> None:
    model = vit(TWINS[1], proj_drop_rate=0.3)
    x, units = images(model), []
    drop = model.blocks[1].mlp.drop1
    handle = drop.register_forward_hook(lambda _, i, out: units.append((i[0], out)))
    model.eval()(x)
    model.train()(x)
    handle.remove()
    (before, after), (whole, some) = units
    assert after is before
    stays = some != 0
    assert 0.68 < stays.double().mean() < 0.72
    torch.testing.assert_close(some[stays], whole[stays] / 0.7, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_features_go_at_all_tokens_or_none(rate: float) -> None:
    torch.manual_seed(0)
    drop, x = SpatialDropout(rate), torch.randn(50, 7, 11, dtype=torch.float64)
    assert torch.equal(drop.eval()(x), x)
    out = drop.train()(x)
    gone = (out == 0).all(1)
    assert torch.equal(out.transpose(1, 2)[gone], torch.zeros(int(gone.sum()), 7).double())
    scaled = x.transpose(1, 2)[~gone] / (1 - rate)
    torch.testing.assert_close(out.transpose(1, 2)[~gone], scaled, rtol=0, atol=1e-12)
    assert abs(gone.double().mean().item() - rate) < 0.05
    if rate == 0:
        assert torch.equal(out, x)


@pytest.mark.parametrize("name", TWINS)
def test_channels_take_the_places_of_timm_s_dropout(name: str) -> None:
    model, plain = vit(name, spatial_drop_rate=0.3), vit(name)
    places = [key for key, m in model.named_modules() if isinstance(m, SpatialDropout)]
    assert places == [
        f"blocks.{block}.{part}"
        for block in range(2)
        for part in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    ]
    x = images(model)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    units: list[Tensor] = []
    handle = model.blocks[1].mlp.fc2.register_forward_pre_hook(lambda _, i: units.append(i[0]))
    model.train()(x)
    handle.remove()
    gone = (units[0] == 0).all(1)
    assert gone.any() and torch.equal((units[0] == 0).any(1), gone)
    hooked = HookedVisionModel(model.eval())  # drop1 and drop2 are not what sites hang on
    assert torch.equal(hooked(x), plain(x))


@pytest.mark.parametrize("name", ["resnet20_32", "bcos_resnet20_32", "bcos_resnet18"])
def test_maps_of_residual_networks_go_as_a_whole(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, spatial_drop_rate=0.4)
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=3)
    x = torch.rand(2, 6 if "bcos" in name else 3, 32, 32)
    block = model.layer2[0]
    assert torch.equal(model.eval()(x), plain.eval()(x))
    maps: list[Tensor] = []
    handle = block.drop_block.register_forward_hook(lambda _, __, output: maps.append(output))
    model.train()(x)
    handle.remove()
    assert maps[0].ndim == 4
    gone = (maps[0] == 0).all((2, 3))
    assert 0.1 < gone.float().mean() < 0.7
    drop_channels(plain, 0.0)
    assert "Dropout2d" not in repr(plain)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("rate", [0.5, 0.9, (0.2, 0.6)])
def test_the_patches_that_stay_are_some_of_them(rate: Any, prefix: int) -> None:
    torch.manual_seed(0)
    drop = PatchDropout(rate, prefix)
    x = torch.arange(3 * (100 + prefix) * 2.0).view(3, 100 + prefix, 2)
    assert drop.eval().keep(x) == (x, None)
    tokens, kept = drop.train().keep(x)
    assert kept is not None
    n_kept = kept.shape[1]
    # timm alone would keep 9 of 100 at a rate of 0.9
    assert n_kept in ({0.5: [50], 0.9: [10]}.get(rate, range(40, 81)))
    assert tokens.shape == (3, prefix + n_kept, 2)
    assert torch.equal(tokens[:, :prefix], x[:, :prefix])
    for image in range(3):
        assert kept[image].unique().numel() == n_kept
        assert torch.equal(tokens[image, prefix:], x[image, prefix + kept[image]])
    assert kept[0].sort().values.tolist() != kept[1].sort().values.tolist()


def test_the_rate_is_drawn_for_each_batch() -> None:
    torch.manual_seed(0)
    drop, x = PatchDropout((0.0, 0.5)), torch.rand(1, 40, 3)
    sizes = {drop(x).shape[1] for _ in range(300)}
    assert sizes == set(range(20, 40))


def test_at_least_one_patch_stays_and_a_rate_of_zero_keeps_all() -> None:
    x = torch.rand(2, 5, 3)
    assert PatchDropout(0.99)(x).shape == (2, 1, 3)
    assert PatchDropout(0.0)(x) is x


@pytest.mark.parametrize("positions", ["attention", "sincos", "none", "learn"])
@pytest.mark.parametrize("name", TWINS)
def test_kept_patches_know_where_they_are(name: str, positions: str) -> None:
    """Block outputs are those of the whole picture in which nobody looks at what is left out."""
    torch.manual_seed(0)
    model = vit(name, patch_drop_rate=0.7, positions=positions)
    for key, parameter in model.named_parameters():
        if key.endswith((".table", "pos_embed")):
            torch.nn.init.normal_(parameter)
    x = images(model)
    plain = vit(name, positions=positions)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))

    torch.manual_seed(5)
    features = model.train().forward_features(x)
    torch.manual_seed(5)
    _, kept = model.patch_drop.keep(torch.zeros(3, 64, 1))
    assert kept is not None and features.shape == (3, 19, 128)
    for image in range(3):
        seen = torch.zeros(64, dtype=torch.bool)
        seen[kept[image]] = True
        whole = plain.forward_features(x[image, None], attn_mask=seen.expand(1, 1, 64, 64))
        torch.testing.assert_close(features[image], whole[0, kept[image]])
    # and the network learns from it
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_patches_are_left_out_with_checkpointed_gradients_too() -> None:
    model = vit(TWINS[0], patch_drop_rate=0.5).train()
    x, grads = images(model), []
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        model.zero_grad()
        torch.manual_seed(0)
        model(x).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_hooks_see_the_bias_of_the_patches_that_stay() -> None:
    model = vit(TWINS[0], patch_drop_rate=0.75).train()  # 16 of 64, which is a square too
    torch.nn.init.normal_(model.blocks[1].attn.position_bias.table)
    hooked = HookedVisionModel(model)
    torch.manual_seed(0)
    _, cache = hooked.run_with_cache(images(model))
    torch.manual_seed(0)
    _, kept = model.patch_drop.keep(torch.zeros(3, 64, 1))
    assert kept is not None
    attn = model.blocks[1].attn
    q, k, v = (cache[f"blocks.1.attn.hook_{site}"].transpose(1, 2) for site in "qkv")
    bias = attn.logit_bias(16, Kept(kept, 64))
    torch.testing.assert_close(
        cache["blocks.1.attn.hook_pattern"], attn.mixer.scores(q, k, bias).softmax(-1)
    )
    z = cache["blocks.1.attn.hook_pattern"] @ v
    torch.testing.assert_close(cache["blocks.1.attn.hook_z"].transpose(1, 2), z)


def test_masks_do_not_go_with_patches_left_out() -> None:
    model = vit(TWINS[0], patch_drop_rate=0.5).train()
    with pytest.raises(SpecError, match="masks are for all tokens"):
        model.forward_features(images(model), attn_mask=torch.ones(64, 64, dtype=torch.bool))


@pytest.mark.parametrize("rate", [1.0, -0.1, (0.6, 0.2), (0.2, 1.0)])
def test_other_rates_of_leaving_out_patches_are_refused(rate: Any) -> None:
    with pytest.raises(SpecError, match="one rate from 0 to below 1, or two that rise"):
        PatchDropout(rate)
