"""Bounds are never below the slopes that are measured, and equal them where they can."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lipsformer import TWINS, built, draw, lived_in
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.models.attention import PositionAttention, attention_layer
from polysem.models.cosine import Cosine
from polysem.models.hooked import HookedVisionModel
from polysem.models.lipschitz import (
    attention_bound,
    block_bound,
    jacobian_norm,
    lipschitz_bound,
    steepness,
)


def dense_norm(function: Any, x: Tensor) -> float:
    """Largest singular value of the whole Jacobian, written out."""
    jacobian = torch.func.jacrev(function)(x).detach().reshape(-1, x.numel())
    return float(torch.linalg.matrix_norm(jacobian, ord=2))


def attention(heads: int, eps: float, tau: float, nu: float, seed: int = 0) -> PositionAttention:
    torch.manual_seed(seed)
    options = tuple({"eps": eps, "tau": tau, "nu": nu}.items())
    layer = attention_layer(
        PositionAttention, mixer_type=Cosine, mixer_options=options, grid=(1, 4)
    )
    made = layer(6, num_heads=heads, qkv_bias=True).double()
    nn.init.normal_(made.position_bias.table)  # type: ignore[union-attr]
    return made


@pytest.mark.parametrize("seed", [0, 1])
def test_power_iteration_finds_the_norm_of_the_jacobian(seed: int) -> None:
    layer, x = attention(2, 0.1, 10, 1), draw(1, 4, 6, seed=seed)
    layer.fused_attn = False  # fused kernels have no batched derivatives
    assert jacobian_norm(layer, x, steps=100) == pytest.approx(dense_norm(layer, x), rel=1e-3)
    assert jacobian_norm(lambda x: 0 * x, x) == 0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    heads=st.sampled_from([1, 2, 3]),
    log_scale=st.floats(-4, 2),
    eps=st.sampled_from([1e-6, 1e-2, 1.0]),
    tau=st.sampled_from([0.5, 10.0]),
    nu=st.sampled_from([0.5, 2.0]),
)
def test_attention_is_never_steeper_than_its_bound(
    seed: int, heads: int, log_scale: float, eps: float, tau: float, nu: float
) -> None:
    layer = attention(heads, eps, tau, nu, seed=seed % 7)
    x = 10**log_scale * draw(1, 4, 6, seed=seed)
    assert jacobian_norm(layer, x, steps=8) <= attention_bound(layer, 4)


def spectral(matrix: Any) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), ord=2))


def slow_bounds(layer: PositionAttention, n: int) -> tuple[float, float]:
    """Both forms of the bound for all heads, from their definition."""
    mixer: Any = layer.mixer
    root, d = math.sqrt(n), layer.head_dim
    sums = [0.0, 0.0]
    for head in range(layer.num_heads):
        q, k, v = (spectral(part[head * d : (head + 1) * d]) for part in layer.qkv.weight.chunk(3))
        for form, logits in enumerate((n / 2 * (q + k), q + root * k)):
            whole = mixer.nu * mixer.eps**-0.5 * (mixer.tau * logits + root * v)
            sums[form] += whole**2
    out = spectral(layer.proj.weight)
    return math.sqrt(sums[0]) * out, math.sqrt(sums[1]) * out


@pytest.mark.parametrize("n", [2, 3, 16, 196])
def test_the_bound_is_the_formula_the_better_of_two(n: int) -> None:
    layer = attention(3, 0.1, 10, 1.5)
    simple, sharp = slow_bounds(layer, n)
    bound = attention_bound(layer, n)
    assert bound <= min(simple, sharp) * (1 + 1e-12)
    if n in (2, 196):  # where one form is better in every head
        assert bound == pytest.approx(min(simple, sharp))
    assert (n == 196) == (sharp < simple / 3)


def test_where_a_bound_can_be_reached_it_is() -> None:
    """One token attends to itself alone: ν v̂ is steepest at 0, where its slope is ν ε^−½ ‖W‖."""
    layer = attention(1, 0.04, 10, 2)
    nn.init.orthogonal_(layer.proj.weight)  # type: ignore[arg-type]
    nn.init.zeros_(layer.qkv.bias)
    x = torch.zeros(1, 1, 6, dtype=torch.float64)
    values = layer.qkv.weight.chunk(3)[2]
    expected = 2 / 0.2 * spectral(values)
    assert jacobian_norm(layer, x, steps=200) == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        layer.qkv.weight[:12] = 0  # queries and keys, which do not matter here
    assert attention_bound(layer, 1) == pytest.approx(expected)


@pytest.mark.parametrize("post_norm", [True, False])
@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("trained", [False, True])
def test_networks_and_blocks_are_never_steeper_than_their_bounds(
    name: str, post_norm: bool, trained: bool
) -> None:
    model = built(name, post_norm=post_norm)
    if trained:
        model = lived_in(model)
    block = model.blocks[1]
    for scale in (1e-3, 1.0, 30.0):
        x = scale * draw(1, model.in_chans, 16, 24, seed=3)
        assert jacobian_norm(model, x, steps=8) <= lipschitz_bound(model)
        tokens = scale * draw(1, 6, 24, seed=4)
        assert jacobian_norm(block, tokens, steps=8) <= block_bound(block, 6)


def test_logits_of_two_images_differ_by_no_more() -> None:
    model = lived_in(built(TWINS[0]))
    a, b = draw(1, 3, 16, 24), draw(1, 3, 16, 24, seed=1)
    assert (model(a) - model(b)).norm() <= lipschitz_bound(model) * (a - b).norm()


@pytest.mark.parametrize("b", [1, 1.5, 2, 3])
def test_b_cos_layers_and_activations_are_in_the_bound(b: float) -> None:
    model = lived_in(built(TWINS[1], b=b, max_out=2))
    x = draw(1, 6, 16, 24)
    assert jacobian_norm(model, x, steps=8) <= lipschitz_bound(model)
    gelu = lived_in(built(TWINS[0]))
    relu = lived_in(built(TWINS[0], depth=3))
    for block in relu.blocks:
        block.mlp.act = nn.ReLU()
    assert lipschitz_bound(relu) < lipschitz_bound(gelu)


@pytest.mark.parametrize("kind", ["GELU", "SiLU", "ReLU"])
def test_slopes_of_activations_are_rounded_up(kind: str) -> None:
    from polysem.models.lipschitz import _SLOPES

    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(getattr(nn, kind)()(x).sum(), x)
    assert _SLOPES[kind] - 1e-3 < slope.abs().max() <= _SLOPES[kind]


def test_without_noise_the_bound_of_a_network_is_the_product_that_it_says() -> None:
    model = built(TWINS[0], depth=2, mlp_ratio=2)
    attn = attention_bound(model.blocks[0].attn, 6)
    center = 24 / 23
    block = center * (1 + attn / 2) * center * (1 + 1.12891 / 2)
    expected = block**2 * center / math.sqrt(6)  # the other weights have norm 1
    second = attention_bound(model.blocks[1].attn, 6)
    expected *= (1 + second / 2) / (1 + attn / 2)
    assert lipschitz_bound(model) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"attention": "softmax"}, r"blocks\.0\.attn has no Lipschitz bound: Softmax"),
        ({"attention": {"kind": "cosine", "normalize_values": False}}, "not normalised"),
        ({"center_norm": False}, r"norm1 has no Lipschitz bound.*LayerNorm"),
        ({"qk_norm": True, "center_norm": False}, "LayerNorm"),
        ({"reg_tokens": 2, "positions": "learn"}, "register tokens"),
        ({"global_pool": "max"}, "global_pool='avg'"),
    ],
    ids=str,
)
def test_what_has_no_bound_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        lipschitz_bound(built(TWINS[0], **options))


def test_networks_of_other_kinds_are_refused() -> None:
    with pytest.raises(SpecError, match="ResNet has no Lipschitz bound"):
        lipschitz_bound(timm.create_model("resnet18"))
    stem = built("vitc_micro_patch8_gap_64", stem=(8, 16, 24))
    with pytest.raises(SpecError, match=r"patch_embed\.proj"):
        lipschitz_bound(stem)


@pytest.mark.parametrize("post_norm", [True, False])
def test_parts_are_measured_where_they_work(post_norm: bool) -> None:
    model = lived_in(built(TWINS[0], depth=2, post_norm=post_norm))
    images = draw(2, 3, 16, 24)
    found = {part.part: part for part in steepness(model, images, steps=40)}
    names = ["blocks.0", "blocks.0.attn", "blocks.1", "blocks.1.attn", "network"]
    assert list(found) == names
    assert all(0 < part.measured <= part.bound for part in found.values())
    assert found["network"].bound == lipschitz_bound(model)
    _, cache = HookedVisionModel(model).run_with_cache(images)
    reads = cache["blocks.1.hook_resid_pre"]
    slopes = [jacobian_norm(model.blocks[1], each[None], steps=40) for each in reads]
    assert found["blocks.1"].measured == pytest.approx(max(slopes), rel=1e-9)
    reads = reads if post_norm else cache["blocks.1.ln1.hook_normalized"]
    slopes = [jacobian_norm(model.blocks[1].attn, each[None], steps=40) for each in reads]
    assert found["blocks.1.attn"].measured == pytest.approx(max(slopes), rel=1e-9)
