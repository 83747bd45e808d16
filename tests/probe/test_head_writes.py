"""Shares of heads against the logit, and writes against the projection."""

import pytest
import torch
from small_models import images_for, small_vit
from torch.nn.functional import cosine_similarity

from polysem.errors import SpecError
from polysem.models.bcos import add_inverse, logit_bias
from polysem.models.bcosify import bcosify
from polysem.models.hooked import HookedVisionModel
from polysem.probe.gates import GatedViT, frozen
from polysem.probe.head_writes import attribute, head_writes

PLAIN = ["class_token", "registers_layerscale_qknorm", "average_pooled", "standard", "bcos",
         "bcos_conv_stem"]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shares_sum_to_the_logit(name: str, dtype: torch.dtype) -> None:
    model = small_vit(name, dtype=dtype)
    images, labels = images_for(model), torch.tensor([1, 4])
    with frozen(model):
        found = attribute(GatedViT(model), images, labels)
        logit = model(images).gather(1, labels[:, None])[:, 0]
    shares = found.heads.sum(1) + found.mlps.sum(1) + found.embedding
    tight = (
        {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    )
    torch.testing.assert_close(found.logit, logit)
    torch.testing.assert_close(shares + found.remainder, logit, **tight)
    if name.startswith("bcos"):  # nobody but the constant logit bias is left
        torch.testing.assert_close(
            found.remainder, torch.full_like(logit, logit_bias(model)), **tight
        )


@pytest.mark.parametrize("name", PLAIN)
def test_writes_add_up_to_what_attention_adds(name: str) -> None:
    options = {"max_out": 2} if name == "bcos" else {}
    model = small_vit(name, **options)
    vit = GatedViT(model)
    _, cache = HookedVisionModel(model).run_with_cache(images_for(model))
    for layer in range(3):
        block = model.blocks[layer]
        writes = head_writes(block, cache["z", layer])
        assert writes.shape[2:] == (3, 24)
        bias = getattr(block.attn.proj, "bias", None)
        constant = 0 if bias is None else block.ls1(bias)
        torch.testing.assert_close(writes.sum(2) + constant, cache["attn_out", layer])
        # each head writes through its own columns alone
        only = torch.zeros_like(cache["z", layer])
        only[:, :, 1] = cache["z", layer][:, :, 1]
        if "bcos" not in name:
            alone = block.ls1(block.attn.proj(only.flatten(2))) - constant
            torch.testing.assert_close(writes[:, :, 1], alone)
    assert vit.n_heads == 3


def test_the_scale_of_a_bcos_projection_is_shared() -> None:
    """A head's write is s(x) ŵ z with s of all heads: not what it would write alone."""
    block = small_vit("bcos").blocks[0]
    z = torch.randn(2, 6, 3, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    writes = head_writes(block, z)
    weight = block.attn.proj.unit_weight()
    response = z.flatten(2) @ weight.T
    scale = response.abs() / z.flatten(2).norm(dim=-1, keepdim=True)
    for head in range(3):
        part = z[:, :, head] @ weight[:, 8 * head : 8 * head + 8].T
        torch.testing.assert_close(writes[:, :, head], scale * part)


def test_opposition_is_the_mean_negative_cosine() -> None:
    model = small_vit("class_token")
    with frozen(model):
        found = attribute(GatedViT(model), images_for(model), torch.tensor([1, 4])).opposition
        _, cache = HookedVisionModel(model).run_with_cache(images_for(model))
    one = head_writes(model.blocks[0], cache["z", 0])[:, :, 2]
    other = head_writes(model.blocks[2], cache["z", 2])[:, :, 1]
    expected = (-cosine_similarity(one, other, dim=-1)).clamp(min=0).mean(1)
    torch.testing.assert_close(found[:, 2, 7], expected)
    torch.testing.assert_close(found, found.mT)
    assert (found.diagonal(dim1=1, dim2=2) == 0).all()


@pytest.mark.parametrize("name", ["post_norm", "swiglu_scale_norms"])
def test_heads_behind_a_norm_cannot_be_told_apart(name: str) -> None:
    model = small_vit(name)
    with frozen(model), pytest.raises(SpecError, match="cannot be told apart"):
        attribute(GatedViT(model), images_for(model), torch.tensor([1, 4]))


@pytest.mark.parametrize("name", ["standard", "bcos"])
def test_what_features_are_scaled_by_is_in_the_writes(name: str) -> None:
    model = small_vit(name, feat_scale=True)
    images, labels = images_for(model), torch.tensor([1, 4])
    with frozen(model):
        found = attribute(GatedViT(model), images, labels)
    shares = found.heads.sum(1) + found.mlps.sum(1) + found.embedding + found.remainder
    torch.testing.assert_close(shares, found.logit, rtol=1e-10, atol=1e-10)
    _, cache = HookedVisionModel(model).run_with_cache(images)
    attention = model.blocks[1].attn
    constant = attention.feat_scale(attention.proj(0 * cache["z", 1].flatten(2)))
    writes = head_writes(model.blocks[1], cache["z", 1])
    torch.testing.assert_close(writes.sum(2) + constant, cache["attn_out", 1])


def test_what_fades_from_a_b_cosified_projection_is_no_head_s_write() -> None:
    """At share 0 the network is the standard one, and so are the shares of its heads."""
    plain = small_vit("class_token")
    images, labels = images_for(plain), torch.tensor([1, 4])
    ours = bcosify(plain, mean=(0.0,) * 3, std=(1.0,) * 3, share=0.0)
    found = []
    for model, given in ((plain, images), (ours, add_inverse(images))):
        with frozen(model):
            found.append(attribute(GatedViT(model), given, labels))
    torch.testing.assert_close(found[1].heads, found[0].heads, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[1].logit, found[0].logit)


def test_heads_before_a_norm_of_the_sum_cannot_be_told_apart() -> None:
    model = small_vit("standard", post_norm=True)
    with frozen(model), pytest.raises(SpecError, match="cannot be told apart"):
        attribute(GatedViT(model), images_for(model), torch.tensor([1, 4]))
