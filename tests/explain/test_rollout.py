"""Rollout against a slow product of matrices, its known answers, and the queries that count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import images_for, small_cnn, small_vit
from torch import Tensor

from polysem.errors import SpecError
from polysem.explain.forward import explaining
from polysem.explain.maps import spread
from polysem.explain.rollout import (
    attention_patterns,
    gradient_rollout,
    head_maps,
    raw_attention,
    rollout,
    rollout_matrix,
)
from polysem.explain.target import Target
from polysem.models.hooked import HookedVisionModel


def patterns_of(model: object, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        _, cache = HookedVisionModel(model).run_with_cache(x)  # type: ignore[arg-type]
    return [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(3)]


def slow_rollout(patterns: list[Tensor], image: int) -> Tensor:
    n_tokens = patterns[0].shape[-1]
    product = torch.eye(n_tokens, dtype=patterns[0].dtype)
    for pattern in patterns:
        step = 0.5 * sum(pattern[image, h] for h in range(pattern.shape[1])) / pattern.shape[1]
        product = (step + 0.5 * torch.eye(n_tokens).to(product)) @ product
    return product


def as_map(keys: Tensor, n_prefix: int) -> Tensor:
    return spread(keys[None, n_prefix:].unflatten(1, (2, 3)), (16, 24))[0]


@pytest.mark.parametrize("name", ["class_token", "registers_layerscale_qknorm", "bcos"])
def test_rollout_is_the_product_read_where_the_classifier_reads(name: str) -> None:
    model = small_vit(name)
    x = images_for(model)
    patterns, n_prefix = patterns_of(model, x), model.num_prefix_tokens
    found = rollout(model, x, Target(0))
    for i in range(2):
        product = slow_rollout(patterns, i)
        torch.testing.assert_close(product.sum(1), torch.ones(len(product)).double())
        row = product[0] if n_prefix else product.mean(0)
        torch.testing.assert_close(found[i], as_map(row, n_prefix))
    if not n_prefix:  # nothing is held by other tokens
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(2).double())


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rows_sum_to_one(n_blocks: int, n_heads: int, n_tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n_blocks, 2, n_heads, n_tokens, n_tokens, generator=generator).double()
    found = rollout_matrix(list((5 * scores).softmax(-1)))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, n_tokens).double())
    assert found.min() >= 0


def test_known_answers() -> None:
    eye = torch.eye(4).double()[None, None]
    assert torch.equal(rollout_matrix([eye, eye, eye])[0], eye[0, 0])
    even = torch.full((1, 2, 4, 4), 0.25).double()
    expected = eye[0, 0] / 8 + (1 - 1 / 8) / 4
    torch.testing.assert_close(rollout_matrix([even] * 3)[0], expected)
    # rows that do not sum to 1, as of attention with a mask's leak, are scaled to do so
    torch.testing.assert_close(rollout_matrix([0.5 * even])[0].sum(1), torch.ones(4).double())


def test_gradient_rollout_is_the_slow_update() -> None:
    model = small_vit("class_token")
    x = images_for(model)
    hooked = HookedVisionModel(model)
    patterns: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: object) -> Tensor:
        patterns[hook.name] = value.clone()  # type: ignore[attr-defined]
        return patterns[hook.name]  # type: ignore[attr-defined]

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    with hooked.hooks(fwd_hooks=[(name, keep) for name in names]):
        logit = hooked(x)[:, 2].sum()
    gradients = torch.autograd.grad(logit, [patterns[name] for name in names])
    found = gradient_rollout(model, x, Target(2))
    for i in range(2):
        relevance = torch.eye(7).double()
        for name, gradient in zip(names, gradients, strict=True):
            raised = (gradient[i] * patterns[name][i]).clamp(min=0).mean(0).detach()
            relevance = relevance + raised @ relevance
        row = (relevance - torch.eye(7).double())[0]
        torch.testing.assert_close(found[i], as_map(row, 1))


def test_of_a_neuron_the_patch_where_it_fired_counts() -> None:
    model = small_vit("average_pooled")
    x = images_for(model)
    site = "blocks.1.mlp.hook_post"
    _, cache = HookedVisionModel(model).run_with_cache(x)
    patterns = [pattern.detach() for pattern in patterns_of(model, x)[:2]]
    strongest = cache[site][:, :, 11].argmax(1)
    found = rollout(model, x, Target(11, site))
    low = rollout(model, x, Target(11, site, position=3))
    mean = rollout(model, x, Target(11, site, pool="mean"))
    for i in range(2):
        product = slow_rollout(patterns, i)
        torch.testing.assert_close(found[i], as_map(product[strongest[i]], 0))
        torch.testing.assert_close(low[i], as_map(product[3], 0))
        torch.testing.assert_close(mean[i], as_map(product.mean(0), 0))


def test_raw_attention_and_heads() -> None:
    model = small_vit("average_pooled")
    x = images_for(model)
    last = patterns_of(model, x)[2].detach()
    found, heads = raw_attention(model, x, Target(0)), head_maps(model, x, layer=-1)
    assert heads.shape == (2, 3, 16, 24)
    torch.testing.assert_close(heads.sum((2, 3)), torch.ones(2, 3).double())
    torch.testing.assert_close(heads.mean(1), found)
    torch.testing.assert_close(found[1], as_map(last[1].mean((0, 1)), 0))
    one = raw_attention(model, x, Target(1, "blocks.2.attn.hook_z", pool="mean"))
    assert one.min() >= 0 and one.sum() == pytest.approx(2)
    with explaining(model):
        assert len(attention_patterns(model, x)) == 3


def test_where_there_is_no_attention() -> None:
    cnn = small_cnn("resnet18")
    for method in (rollout, gradient_rollout, raw_attention):
        with pytest.raises(SpecError, match="need attention patterns, and ResNet has none"):
            method(cnn, images_for(cnn), Target(0))
    model = small_vit("bcos")
    x = images_for(model)
    for site in ("hook_embed", "blocks.0.hook_resid_pre"):
        with pytest.raises(SpecError, match="no attention comes before"):
            rollout(model, x, Target(0, site))
    with pytest.raises(SpecError, match="there is no block 3"):
        head_maps(model, x, layer=3)
    with pytest.raises(SpecError, match="there is no class 5"):
        rollout(model, x, Target(5))
    with pytest.raises(SpecError, match="has no site"):
        rollout(model, x, Target(5, "blocks.8.hook_mlp_out"))
