"""Networks cut at sites: parts of what arrives sum to it, and a circuit made by hand is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import images_for, noise_like, small_cnn, small_vit
from torch import Tensor

from polysem.explain.cuts import (
    CLASS,
    IMAGE,
    by_face,
    cut,
    gradients,
    parts,
    prepared,
    signed_sites,
)
from polysem.explain.linear import linear_map
from polysem.explain.target import Target
from polysem.models.hooked import HookedVisionModel

MLPS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "blocks.2.mlp.hook_post"]
SITES = {
    "all MLPs": [*MLPS, "hook_pooled"],
    "one MLP": MLPS[:1],
    "stream": ["blocks.0.hook_resid_post"],
    "between attention and MLP": ["blocks.1.hook_resid_mid", MLPS[1]],
    "heads": ["blocks.0.attn.hook_z", MLPS[0], "blocks.2.attn.hook_z", "hook_pooled"],
}


def summed(model: Any, x: Tensor, sites: list[str], target: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weighted sum over what arrives [image], the units' part and the image's."""
    signed = signed_sites(model, sites)
    with prepared(model, bcos=True):
        at = cut(model, x, sites, read=[] if target in (*sites, CLASS) else [target])
        asked = noise_like(at.arrived[target].detach())[None]
        units, image = parts(at, gradients(at, target, asked), signed)
        whole = (at.arrived[target].detach() * asked[0]).flatten(1).sum(1)
    return whole, sum(part[0].sum((1, 2)) for part in units.values()), image[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
@pytest.mark.parametrize("target", ["blocks.2.mlp.hook_post", "blocks.2.attn.hook_z", CLASS])
def test_edges_into_a_bcos_unit_sum_to_its_activation(
    sites: list[str], target: str, dtype: torch.dtype
) -> None:
    """All that arrives comes from units before or around them; through a cut stream, from units."""
    model = small_vit("bcos", dtype=dtype)
    whole, units, image = summed(model, images_for(model), sites, target)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(units + image, whole, rtol=tolerance, atol=tolerance)
    if "resid" in sites[0] or (target == CLASS and sites[-1] == "hook_pooled"):
        assert float(image.abs().max()) <= tolerance  # nothing leads around
        assert not torch.allclose(units, torch.zeros_like(units), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_between_channels_of_a_bcos_cnn_sum_too(dtype: torch.dtype) -> None:
    model = small_cnn("bcos_resnet20_32", dtype=dtype)
    sites = ["layer1.1.hook_post", "layer2.0.hook_post"]
    whole, units, image = summed(model, images_for(model), sites, "layer2.1.hook_post")
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(units, whole, rtol=tolerance, atol=tolerance)
    assert float(image.abs().max()) <= tolerance


def test_two_sites_alone_are_w_of_x_between_them() -> None:
    model = small_vit("bcos")
    x, target = images_for(model), Target(7, MLPS[2], position=3)
    rows = linear_map(model, x, [target], source=MLPS[0])
    with prepared(model, bcos=True):
        at = cut(model, x, MLPS[:1], read=[MLPS[2]])
        asked = torch.zeros_like(at.arrived[MLPS[2]])
        asked[:, 3, 7] = 1
        units, _ = parts(at, gradients(at, MLPS[2], asked[None]), {MLPS[0]: False})
    torch.testing.assert_close(units[MLPS[0]][0, :, 0], rows.contributions[0].sum(1))


def test_what_passes_through_another_cut_site_is_not_counted_twice() -> None:
    """The total effect is the direct one, and that on each site between times what it does."""
    model = small_vit("class_token")
    x = images_for(model)

    def gradient(sites: list[str], where: str, asked: Tensor) -> dict[str, Tensor]:
        with prepared(model, bcos=False):
            at = cut(model, x, sites)
            return {s: g[0] for s, g in gradients(at, where, asked[None]).items()}

    with torch.no_grad():
        asked = noise_like(model(x))
    total = gradient(MLPS[:1], CLASS, asked)[MLPS[0]]
    some = gradient(MLPS[:2], CLASS, asked)
    through = gradient(MLPS[:2], MLPS[1], some[MLPS[1]])[MLPS[0]]
    assert not torch.allclose(some[MLPS[0]], total)
    torch.testing.assert_close(some[MLPS[0]] + through, total)


def test_cutting_changes_no_activation_and_faces_are_told_apart() -> None:
    model = small_vit("bcos")
    x = images_for(model)
    with torch.no_grad():
        _, cache = HookedVisionModel(model).run_with_cache(x)
    sites = SITES["heads"]
    with prepared(model, bcos=True):
        at = cut(model, x, sites)
    assert at.before(CLASS) == [IMAGE, *sites] and at.before(sites[1]) == [IMAGE, sites[0]]
    for site in sites:
        torch.testing.assert_close(at.arrived[site].detach(), cache[site])
    signed = signed_sites(model, sites)
    assert signed == {site: "hook_z" not in site for site in sites}
    assert not any(signed_sites(small_vit("class_token"), MLPS).values())
    activation, contribution = cache[sites[1]], noise_like(cache[sites[1]])[None]
    faces = by_face(contribution, activation, sites[1], signed=True)
    slow = torch.zeros_like(faces)
    for i, t, u in torch.cartesian_prod(*map(torch.arange, activation.shape)).tolist():
        slow[0, i, 0 if activation[i, t, u] > 0 else 1, u] += contribution[0, i, t, u]
    torch.testing.assert_close(faces, slow)
    z = cache[sites[0]]
    heads = by_face(noise_like(z)[None], z, sites[0], signed=False)
    torch.testing.assert_close(heads[0, :, 0], noise_like(z).sum((1, 3)))


def test_with_norms_held_a_relu_transformer_adds_up() -> None:
    """Free norms would leave out that what they read may grow in proportion and change nothing."""
    model = small_vit("average_pooled", act_layer=torch.nn.ReLU)
    x, site = images_for(model), MLPS[2]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name == "pos_embed":
                parameter.zero_()
    for block in model.blocks:  # patterns bend, too, and are not held
        block.attn.qkv.weight.data[:48] = 0
    found = {}
    for norms in ("held", "free"):
        with prepared(model, bcos=False, norms=norms):
            at = cut(model, x, MLPS[:2], read=[site])
            asked = noise_like(at.arrived[site].detach())[None]
            signed = signed_sites(model, MLPS)
            units, image = parts(at, gradients(at, site, asked), signed)
        found[norms] = sum(part[0].sum((1, 2)) for part in units.values()) + image[0]
        whole = (at.arrived[site].detach() * asked[0]).flatten(1).sum(1)
    torch.testing.assert_close(found["held"], whole)
    assert not torch.isclose(found["free"], whole, rtol=0.1).any()
