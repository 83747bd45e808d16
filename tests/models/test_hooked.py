"""The wrapper: TransformerLens's interface on networks of all kinds, at no cost when unused."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from small_models import CNNS, VITS, images_for, small_cnn, small_vit
from torch import Tensor, nn
from transformer_lens import ActivationCache

from polysem.errors import SpecError
from polysem.models.bcos import explanation_mode
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import load_model
from polysem.sites import parse_site


def small(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return small_vit(name, dtype=dtype) if name in VITS else small_cnn(name, dtype=dtype)


def count_hooks(model: nn.Module) -> Counter[str]:
    """Return how many torch hooks each module of a model holds, of whatever kind."""
    return Counter(
        {
            name: n_hooks
            for name, module in model.named_modules()
            if (n_hooks := sum(len(v) for k, v in vars(module).items() if k.endswith("_hooks")))
        }
    )


@pytest.mark.parametrize("name", [*VITS, *CNNS])
def test_reading_every_site_leaves_the_output_bit_for_bit_and_no_hook_behind(name: str) -> None:
    model = small(name)
    images = images_for(model)
    with torch.inference_mode():
        bare = model(images)
        hooked = HookedVisionModel(model)
        assert torch.equal(hooked(images), bare)
        assert not count_hooks(hooked)
        logits, _ = hooked.run_with_cache(images)
        assert torch.equal(logits, bare)
        assert not count_hooks(hooked)
    assert not any(isinstance(value, Tensor) for tap in hooked.taps.values() for value in vars(tap))


@pytest.mark.parametrize(
    ("site", "modules"),
    [
        ("blocks.1.mlp.hook_post", ["blocks.1.mlp.fc2"]),
        ("blocks.1.attn.hook_z", ["blocks.1.attn.norm"]),
        ("blocks.1.hook_resid_mid", ["blocks.1", "blocks.1.norm2"]),
        (
            "blocks.1.attn.hook_pattern",
            ["blocks.1.attn"]
            + [f"blocks.1.attn.{part}" for part in ("qkv", "q_norm", "k_norm", "norm")],
        ),
    ],
)
def test_only_the_modules_of_listened_sites_are_hooked_and_only_while_running(
    site: str, modules: list[str]
) -> None:
    hooked = HookedVisionModel(small("class_token"))
    during: list[Counter[str]] = []
    with hooked.hooks(
        fwd_hooks=[(site, lambda value, hook: during.append(count_hooks(hooked.model)))]
    ):
        assert not count_hooks(hooked.model)
        hooked(images_for(hooked.model))
        assert not count_hooks(hooked.model)
    assert during == [Counter(modules)]


@pytest.mark.parametrize("name", [*VITS, *CNNS])
def test_every_site_has_the_axes_that_its_name_says(name: str) -> None:
    hooked = HookedVisionModel(small(name))
    with torch.inference_mode():
        _, sites = hooked.run_with_cache(images_for(hooked.model))
    assert set(sites.keys()) == set(hooked.hook_dict)
    for site, value in sites.items():
        dims = parse_site(site).dims
        assert value.ndim == len(dims)
        sizes = dict(zip(dims, value.shape, strict=True))
        assert sizes["image"] == 2
        assert sizes.get("head", 3) == 3 and sizes.get("d_head", 8) == 8
        assert sizes.get("d_mlp") in (None, 20 if name == "swiglu_scale_norms" else 40)
        if site.startswith("blocks"):
            n_tokens = 6 + hooked.n_prefix_tokens
            assert all(sizes.get(dim, n_tokens) == n_tokens for dim in ("token", "query", "key"))


def test_sizes_and_prefix_tokens_are_known() -> None:
    expected = {
        "class_token": (1, True),
        "registers_layerscale_qknorm": (3, True),
        "average_pooled": (0, False),
        "bcos": (0, False),
        "resnet18": (0, False),
    }
    for name, (n_prefix, has_class) in expected.items():
        hooked = HookedVisionModel(small(name))
        assert (hooked.n_prefix_tokens, hooked.has_class_token) == (n_prefix, has_class)
    assert hooked.cfg is None
    cfg = HookedVisionModel(small("class_token")).cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head) == (3, 3, 24, 8)


def test_the_cache_takes_transformer_lens_short_names() -> None:
    hooked = HookedVisionModel(small("class_token"))
    with torch.inference_mode():
        _, cache = hooked.run_with_cache(images_for(hooked.model))
    assert isinstance(cache, ActivationCache)
    assert cache["pattern", 2] is cache["blocks.2.attn.hook_pattern"]
    assert cache["resid_post", -1] is cache["blocks.2.hook_resid_post"]
    assert cache["mlp_out", -3] is cache["blocks.0.hook_mlp_out"]
    assert cache["post", 1] is cache["blocks.1.mlp.hook_post"]
    assert cache["normalized", 1, "ln2"] is cache["blocks.1.ln2.hook_normalized"]
    assert cache["embed"] is cache["hook_embed"]
    assert cache["normalized"] is cache["ln_final.hook_normalized"]
    stream, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    assert torch.equal(stream[3], cache["resid_mid", 1])
    assert torch.equal(stream[6], cache["resid_post", 2])


@pytest.mark.parametrize("name", ["standard", "bcos"])
def test_without_added_positions_the_stream_is_the_sum_of_its_writes(name: str) -> None:
    hooked = HookedVisionModel(small(name, torch.float64))
    with torch.no_grad():
        _, cache = hooked.run_with_cache(images_for(hooked.model))
    writes, labels = cache.decompose_resid(return_labels=True)
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"] and len(labels) == 7
    assert torch.allclose(writes.sum(0), cache["resid_post", -1], rtol=0, atol=1e-12)


def test_caching_takes_names_a_function_of_names_one_image_and_positions() -> None:
    hooked = HookedVisionModel(small("class_token"))
    images = images_for(hooked.model)
    chosen = ["blocks.1.attn.hook_z", "hook_pooled"]
    with torch.inference_mode():
        _, every = hooked.run_with_cache(images)
        for names in (chosen, lambda site: site in chosen):
            _, cache = hooked.run_with_cache(images, names_filter=names)
            assert list(cache.keys()) == chosen
        _, one = hooked.run_with_cache(images[:1], names_filter=chosen[0], remove_batch_dim=True)
        assert not one.has_batch_dim
        assert torch.allclose(one["z", 1], every["z", 1][0], atol=1e-6)
        _, token = hooked.run_with_cache(images, names_filter=chosen[0], pos_slice=0)
        assert torch.equal(token["z", 1], every["z", 1][:, :1])


def test_gradients_are_cached_for_a_model_of_one_output() -> None:
    hooked = HookedVisionModel(small_vit("standard", num_classes=1))
    images = images_for(hooked.model)[:1].double()
    logit, cache = hooked.run_with_cache(images, incl_bwd=True)
    step = 1e-5 * cache["blocks.1.hook_resid_post_grad"]
    with torch.no_grad():
        moved = hooked.run_with_hooks(
            images, fwd_hooks=[("blocks.1.hook_resid_post", lambda value, hook: value + step)]
        )
    gained = (moved - logit).item()
    assert gained == pytest.approx(step.square().sum().item() / 1e-5, rel=1e-3)
    assert set(cache.keys()) == {f"{s}{end}" for s in hooked.hook_dict for end in ("", "_grad")}


@pytest.mark.parametrize("wrong", ["blocks.1.mlp.hook_pots", "blocks.7.mlp.hook_post"])
def test_an_unknown_site_is_an_error_that_names_near_ones(wrong: str) -> None:
    hooked = HookedVisionModel(small("class_token"))
    images = images_for(hooked.model)

    def read(value: Tensor, hook: Any) -> None:
        raise AssertionError

    attempts = [
        lambda: hooked.run_with_cache(images, names_filter=wrong),
        lambda: hooked.run_with_cache(images, names_filter=["hook_pooled", wrong]),
        lambda: hooked.add_caching_hooks(wrong),
        lambda: hooked.run_with_hooks(images, fwd_hooks=[("hook_pooled", read), (wrong, read)]),
        lambda: hooked.add_hook(wrong, read),
        lambda: hooked.add_perma_hook(wrong, read),
    ]
    for attempt in attempts:
        with pytest.raises(SpecError, match=r"no site 'blocks.*did you mean 'blocks.*hook_post"):
            attempt()
        assert not hooked.list_hooks() and not count_hooks(hooked)


def test_a_level_of_names_is_no_site() -> None:
    hooked = HookedVisionModel(small("class_token"))
    with pytest.raises(SpecError, match=r"no site 'blocks\.0\.attn'"):
        hooked.add_hook("blocks.0.attn", lambda value, hook: None)


def test_what_holds_a_network_is_none() -> None:
    with pytest.raises(SpecError, match="LoadedModel is no network; if it holds one, pass that"):
        HookedVisionModel(load_model("timm:resnet20_32"))  # type: ignore[arg-type]


def test_hooks_that_are_added_stay_until_they_are_reset() -> None:
    hooked = HookedVisionModel(small("class_token"))
    images = images_for(hooked.model)
    seen: list[str] = []
    hooked.add_hook("hook_pooled", lambda value, hook: seen.append("added"))
    hooked.add_perma_hook("hook_pooled", lambda value, hook: seen.append("permanent"))
    with hooked.hooks(fwd_hooks=[("hook_pooled", lambda value, hook: seen.append("inner"))]):
        hooked(images)
    assert seen == ["added", "permanent", "inner"]
    hooked(images)
    hooked.reset_hooks()
    hooked(images)
    assert seen[3:] == ["added", "permanent", "permanent"]
    hooked.reset_hooks(including_permanent=True)
    hooked(images)
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["class_token", "bcos", "bcos_resnet20_32"])
def test_weights_modes_and_devices_are_those_of_the_model(name: str) -> None:
    model = small(name)
    hooked = HookedVisionModel(model)
    assert list(hooked.state_dict()) == [f"model.{key}" for key in model.state_dict()]
    assert list(map(id, hooked.parameters())) == list(map(id, model.parameters()))
    assert hooked.train() is hooked and model.training
    hooked.eval()
    assert not any(module.training for module in model.modules())
    hooked.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    hooked.load_state_dict({key: value * 0 for key, value in hooked.state_dict().items()})
    assert all(value.abs().max() == 0 for value in model.state_dict().values())
    assert hooked.double().model is model
    logits, sites = hooked.run_with_cache(images_for(model))
    assert all(value.dtype == torch.float64 for value in (logits, *sites.values()))
    hooked.to("meta")
    assert all(value.is_meta for value in model.state_dict().values())


@pytest.mark.parametrize("name", [*VITS, *CNNS])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies_are_whole_and_independent(name: str, duplicate: Any) -> None:
    hooked = HookedVisionModel(small(name))
    images = images_for(hooked.model)
    site = list(hooked.hook_dict)[3]
    with torch.inference_mode():
        logits, sites = hooked.run_with_cache(images)
        twin = duplicate(hooked)
        twin_logits, twin_sites = twin.run_with_cache(images)
        assert torch.equal(twin_logits, logits)
        assert all(torch.equal(twin_sites[name], value) for name, value in sites.items())
        silenced = [(site, lambda value, hook: value * 0)]
        assert not torch.equal(twin.run_with_hooks(images, fwd_hooks=silenced), logits)
        with twin.hooks(fwd_hooks=silenced):
            assert torch.equal(hooked(images), logits)
        twin.add_hook(site, lambda value, hook: value * 0)
        assert not hooked.list_hooks()
    assert not set(map(id, twin.parameters())) & set(map(id, hooked.parameters()))


def test_explanations_are_the_same_while_sites_are_read() -> None:
    hooked = HookedVisionModel(small("bcos", torch.float64))
    images = images_for(hooked.model).requires_grad_()
    with explanation_mode(hooked):
        (plain,) = torch.autograd.grad(hooked(images)[:, 2].sum(), images)
        logits, _ = hooked.run_with_cache(images)
        (read,) = torch.autograd.grad(logits[:, 2].sum(), images)
    assert torch.equal(plain, read)
    bias = hooked.model.head.bias.value
    assert torch.allclose((read * images).sum((1, 2, 3)), logits[:, 2] - bias, rtol=0, atol=1e-12)
