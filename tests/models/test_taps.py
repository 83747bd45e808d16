"""Sites of vision transformers, against a forward pass written out slowly in float64."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_vit import Reference
from small_models import VITS, images_for, noise_like, small_vit
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from polysem.models.hooked import HookedVisionModel

# every kind of site once, in the middle of the network where edits have a before and an after
SITES = [
    "hook_embed", "blocks.1.hook_resid_pre", "blocks.1.ln1.hook_normalized",
    "blocks.1.attn.hook_q", "blocks.1.attn.hook_k", "blocks.1.attn.hook_v",
    "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z",
    "blocks.1.hook_attn_out", "blocks.1.hook_resid_mid", "blocks.1.ln2.hook_normalized",
    "blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out",
    "blocks.1.hook_resid_post", "ln_final.hook_normalized", "hook_pooled",
]  # fmt: skip

# average-pooled models normalise after pooling; post-norm blocks read the stream as it is
ABSENT = {
    "average_pooled": {"ln_final.hook_normalized"},
    "post_norm": {"blocks.1.ln1.hook_normalized", "blocks.1.ln2.hook_normalized"},
    "standard": {"ln_final.hook_normalized"},
    "bcos": {"ln_final.hook_normalized"},
    "bcos_conv_stem": {"ln_final.hook_normalized"},
}


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, site) for name in names for site in SITES if site not in ABSENT.get(name, set())]


@cache
def wrapped(name: str) -> HookedVisionModel:
    return HookedVisionModel(small_vit(name))


def shaken(value: Tensor) -> Tensor:
    """Another tensor of the same scale, which no linear map makes of the first."""
    return 0.7 * value + 0.3 * noise_like(value)


def largest_difference(first: Tensor, second: Tensor) -> float:
    assert first.shape == second.shape
    return (first - second).abs().max().item()


@pytest.mark.parametrize("name", VITS)
def test_every_site_has_the_value_of_the_reference(name: str) -> None:
    hooked, reference = wrapped(name), Reference(wrapped(name).model)
    images = images_for(hooked.model)
    with torch.no_grad():
        logits, sites = hooked.run_with_cache(images)
        expected = reference(images)
    assert largest_difference(logits, expected) < 1e-12
    assert set(sites.keys()) == set(reference.sites) == set(hooked.hook_dict)
    assert set(SITES) - set(sites.keys()) == ABSENT.get(name, set())
    for site, value in reference.sites.items():
        assert largest_difference(sites[site], value) < 1e-12, site


@pytest.mark.parametrize("name", VITS)
def test_every_site_is_bit_for_bit_what_a_plain_hook_sees(name: str) -> None:
    model = small_vit(name, dtype=torch.float32)
    images = images_for(model)
    seen: dict[str, Tensor] = {}

    def keep_output(site: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _m, _i, out: seen.__setitem__(site, out.clone()))

    def keep_input(site: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _m, args: seen.__setitem__(site, args[0].clone()))

    keep_output("hook_embed", model.patch_embed)
    keep_input("hook_pooled", model.head)
    for layer, block in enumerate(model.blocks):
        keep_input(f"blocks.{layer}.hook_resid_pre", block)
        keep_output(f"blocks.{layer}.hook_resid_post", block)
        keep_output(f"{layer} qkv", block.attn.qkv)
        keep_output(f"{layer} q", block.attn.q_norm)
        keep_output(f"{layer} k", block.attn.k_norm)
        keep_input(f"{layer} z", block.attn.norm)
        keep_output(f"blocks.{layer}.mlp.hook_pre", block.mlp.fc1)
        keep_input(f"blocks.{layer}.mlp.hook_post", block.mlp.fc2)
        if name == "post_norm":
            keep_output(f"blocks.{layer}.hook_attn_out", block.norm1)
            keep_input(f"blocks.{layer}.hook_resid_mid", block.mlp)
            keep_output(f"blocks.{layer}.hook_mlp_out", block.norm2)
        else:
            keep_output(f"blocks.{layer}.ln1.hook_normalized", block.norm1)
            keep_output(f"blocks.{layer}.hook_attn_out", block.ls1)
            keep_input(f"blocks.{layer}.hook_resid_mid", block.norm2)
            keep_output(f"blocks.{layer}.ln2.hook_normalized", block.norm2)
            keep_output(f"blocks.{layer}.hook_mlp_out", block.ls2)
    with torch.no_grad():
        _, sites = HookedVisionModel(model).run_with_cache(images)
    seen["hook_embed"] = seen["hook_embed"].reshape(2, 6, 24)
    for layer in range(3):
        attn = f"blocks.{layer}.attn.hook_"
        n_tokens = seen[f"{layer} qkv"].shape[1]
        seen[attn + "v"] = seen.pop(f"{layer} qkv").view(2, n_tokens, 3, 3, 8)[:, :, 2]
        seen[attn + "z"] = seen.pop(f"{layer} z").view(2, n_tokens, 3, 8)
        seen[attn + "q"] = seen.pop(f"{layer} q").permute(0, 2, 1, 3)
        seen[attn + "k"] = seen.pop(f"{layer} k").permute(0, 2, 1, 3)
        if name == "swiglu_scale_norms":  # fc1 gives gates and values; the neurons' input is a gate
            seen[f"blocks.{layer}.mlp.hook_pre"] = seen[f"blocks.{layer}.mlp.hook_pre"][..., :20]
    computed = {site for site in sites if site.endswith(("pattern", "attn_scores"))}
    assert set(seen) | {"ln_final.hook_normalized"} >= set(sites) - computed
    for site, value in seen.items():
        assert torch.equal(sites[site], value), site


@pytest.mark.parametrize("name", VITS)
def test_branches_are_what_is_added_to_the_stream(name: str) -> None:
    model = small_vit(name, dtype=torch.float32)
    with torch.no_grad():
        _, sites = HookedVisionModel(model).run_with_cache(images_for(model))
    for layer in range(3):
        before, middle, after, attn_out, mlp_out = (
            sites[part, layer]
            for part in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        )
        assert torch.equal(before + attn_out, middle)
        assert torch.equal(middle + mlp_out, after)
        if layer:
            assert torch.equal(before, sites["resid_post", layer - 1])


@pytest.mark.parametrize("name", VITS)
def test_patterns_beside_fused_attention_are_those_of_unfused_attention(name: str) -> None:
    model = small_vit(name, dtype=torch.float32)
    images = images_for(model)
    sites = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    assert all(block.attn.fused_attn for block in model.blocks)
    with torch.no_grad():
        fused, cached = HookedVisionModel(model).run_with_cache(images, names_filter=sites)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    with torch.no_grad():
        unfused = model(images)
        _, cached_unfused = HookedVisionModel(model).run_with_cache(images, names_filter=sites)
    assert largest_difference(fused, unfused) < 1e-5
    for site, pattern in zip(sites, seen[:3], strict=True):
        assert largest_difference(cached[site], pattern) < 1e-6
        assert largest_difference(cached_unfused[site], pattern) < 1e-6
        assert largest_difference(cached[site].sum(-1), torch.ones(pattern.shape[:-1])) < 1e-6


@pytest.mark.parametrize(("name", "site"), pairs(VITS))
def test_an_edit_changes_everything_after_it_as_a_direct_edit_does(name: str, site: str) -> None:
    hooked = wrapped(name)
    reference = Reference(hooked.model, {site: shaken})
    images = images_for(hooked.model)
    cache_dict, hooks, _ = hooked.get_caching_hooks()
    with torch.no_grad():
        untouched = hooked(images)
        logits = hooked.run_with_hooks(
            images, fwd_hooks=[(site, lambda value, hook: shaken(value)), *hooks]
        )
        expected = reference(images)
    assert largest_difference(logits, expected) < 1e-12
    assert largest_difference(logits, untouched) > 1e-4
    for after, value in reference.sites.items():
        assert largest_difference(cache_dict[after], value) < 1e-12, after


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("name", "site"), pairs(["registers_layerscale_qknorm", "standard"]))
def test_an_edit_in_place_counts_whether_or_not_it_is_returned(
    name: str, mode: Any, site: str
) -> None:
    hooked = wrapped(name)
    images = images_for(hooked.model)

    def halve(value: Tensor, hook: Any) -> Tensor:
        value[..., 1:] *= 0.5
        return value

    def halve_silently(value: Tensor, hook: Any) -> None:
        value[..., 1:] *= 0.5

    def halved(value: Tensor) -> Tensor:
        return torch.cat([value[..., :1], value[..., 1:] * 0.5], dim=-1)

    with mode():
        expected = Reference(hooked.model, {site: halved})(images)
        for hook in (halve, halve_silently):
            logits = hooked.run_with_hooks(images, fwd_hooks=[(site, hook)])
            assert largest_difference(logits, expected) < 1e-12
            assert largest_difference(logits, hooked(images)) > 1e-4


@pytest.mark.parametrize("name", VITS)
def test_putting_a_copy_in_place_of_every_site_changes_nothing(name: str) -> None:
    hooked = wrapped(name)
    images = images_for(hooked.model)
    with torch.no_grad():
        logits = hooked.run_with_hooks(
            images, fwd_hooks=[(lambda site: True, lambda value, hook: value.clone())]
        )
        assert largest_difference(logits, hooked(images)) < 1e-12


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["registers_layerscale_qknorm", "post_norm", "bcos"]),
    data=st.data(),
)
def test_edits_at_any_set_of_sites_compose(name: str, data: st.DataObject) -> None:
    hooked = wrapped(name)
    chosen = data.draw(st.lists(st.sampled_from(list(hooked.hook_dict)), unique=True, max_size=9))
    images = images_for(hooked.model)
    with torch.no_grad():
        logits = hooked.run_with_hooks(
            images, fwd_hooks=[(site, lambda value, hook: shaken(value)) for site in chosen]
        )
        expected = Reference(hooked.model, dict.fromkeys(chosen, shaken))(images)
    assert largest_difference(logits, expected) < 1e-11


@pytest.mark.parametrize("name", ["class_token", "standard"])
def test_a_head_without_output_writes_nothing(name: str) -> None:
    hooked = wrapped(name)
    images, attn = images_for(hooked.model), hooked.model.blocks[2].attn

    def silence(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    with torch.no_grad():
        _, before = hooked.run_with_cache(images)
        with hooked.hooks(fwd_hooks=[("blocks.2.attn.hook_z", silence)]):
            _, after = hooked.run_with_cache(images, names_filter="blocks.2.hook_attn_out")
    write = before["z", 2][:, :, 1] @ attn.proj.weight[:, 8:16].T
    assert largest_difference(before["attn_out", 2] - write, after["attn_out", 2]) < 1e-12


@pytest.mark.parametrize("name", VITS)
def test_gradients_at_every_site_are_those_of_the_reference(name: str) -> None:
    hooked, reference = wrapped(name), Reference(wrapped(name).model)
    images = images_for(hooked.model)
    weights = noise_like(torch.zeros(2, 5))
    gradients: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        gradients[hook.name] = gradient

    with hooked.hooks(bwd_hooks=[(lambda site: True, keep)]):
        (hooked(images) * weights).sum().backward()
    hooked.zero_grad()
    expected = torch.autograd.grad(
        (reference(images) * weights).sum(), list(reference.sites.values())
    )
    assert set(gradients) == set(reference.sites)
    for site, gradient in zip(reference.sites, expected, strict=True):
        assert gradient.abs().max() > 0
        assert largest_difference(gradients[site], gradient) < 1e-10, site


@pytest.mark.parametrize("site", ["hook_resid_mid", "hook_resid_post"])
def test_a_gradient_stopped_at_the_stream_reaches_nothing_before(site: str) -> None:
    hooked = wrapped("bcos")
    images = images_for(hooked.model).requires_grad_()
    stop = (f"blocks.1.{site}", lambda gradient, hook: torch.zeros_like(gradient))
    with hooked.hooks(bwd_hooks=[stop]):
        (gradient,) = torch.autograd.grad(hooked(images).sum(), images)
    assert gradient.abs().max() == 0


def test_reading_leaves_gradients_as_they_are() -> None:
    hooked = wrapped("bcos")
    images = images_for(hooked.model).requires_grad_()
    (plain,) = torch.autograd.grad(hooked(images)[:, 3].sum(), images)
    logits, _ = hooked.run_with_cache(images)
    (read,) = torch.autograd.grad(logits[:, 3].sum(), images)
    assert torch.equal(plain, read)


def test_neurons_are_signed_unless_an_activation_bounds_them() -> None:
    bounded = {"class_token", "registers_layerscale_qknorm", "average_pooled", "post_norm",
               "standard"}  # fmt: skip
    for name in VITS:
        taps = wrapped(name).taps
        assert taps["blocks.0.mlp.hook_post"].signed == (name not in bounded)
        assert not taps["blocks.0.attn.hook_pattern"].signed
        assert taps["blocks.0.attn.hook_z"].signed and taps["hook_pooled"].signed


def test_attention_of_another_kind_has_no_sites_that_would_mean_something_else() -> None:
    model = small_vit("class_token", attn_layer="diff", num_heads=3)
    sites = HookedVisionModel(model).hook_dict
    assert not any(".attn." in site for site in sites)
    assert "blocks.2.hook_attn_out" in sites and "blocks.2.mlp.hook_post" in sites


def test_parallel_blocks_have_only_the_stream_around_them() -> None:
    model = small_vit("class_token", block_fn=ParallelScalingBlock)
    images = images_for(model)
    hooked = HookedVisionModel(model)
    assert [site for site in hooked.hook_dict if site.startswith("blocks.1")] == [
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post",
    ]
    with torch.no_grad():
        _, sites = hooked.run_with_cache(images)
        assert torch.equal(model.blocks[1](sites["resid_pre", 1]), sites["resid_post", 1])


def test_a_head_without_pooling_has_no_pooled_site() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, depth=1, global_pool="")
    assert "hook_pooled" not in HookedVisionModel(model).hook_dict


def test_bf16_autocast_reads_the_same_pattern_coarsely() -> None:
    model = small_vit("standard", dtype=torch.float32)
    images = images_for(model)
    with torch.inference_mode():
        _, exact = HookedVisionModel(model).run_with_cache(images)
        with torch.autocast("cpu", torch.bfloat16):
            _, coarse = HookedVisionModel(model).run_with_cache(images)
    for layer in range(3):
        difference = largest_difference(exact["pattern", layer], coarse["pattern", layer].float())
        assert 0 < difference < 0.05
