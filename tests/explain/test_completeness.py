"""Every class and twenty random neurons are made up of W(x) and the named terms, and of no more."""

from __future__ import annotations

import random
from typing import Any

import pytest
import timm
import torch
from small_models import images_for, small_cnn, small_vit
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.explain.completeness import check
from polysem.explain.target import Target, sites_of
from polysem.models.hooked import HookedVisionModel
from polysem.sites import parse_site

NETWORKS = ["bcos", "bcos_conv_stem", "bcos_sincos", "bcos_resnet20_32", "resnet18", "maxout"]


def network(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    if name == "bcos_sincos":
        return small_vit("bcos", dtype=dtype, positions="sincos")
    if name == "maxout":
        return small_vit("bcos", dtype=dtype, b=1, max_out=3)
    if name in ("bcos", "bcos_conv_stem"):
        return small_vit(name, dtype=dtype)
    model = small_cnn(name, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    for key, buffer in model.named_buffers():  # as after some training
        if key.endswith("running_mean") and name == "resnet18":
            buffer += 0.3 * torch.randn(buffer.shape, generator=generator).to(buffer)
        if key.endswith("running_var"):
            buffer *= 0.5 + torch.rand(buffer.shape, generator=generator).to(buffer)
    return model


def targets_of(model: nn.Module, images: Tensor) -> list[Target]:
    """Return every class and twenty random neurons, heads or channels."""
    _, cache = HookedVisionModel(model).run_with_cache(images)
    draw, found = random.Random(0), [Target(index) for index in range(5)]
    sites = sites_of(model)
    while len(found) < 25:
        site = parse_site(draw.choice(sites))
        size = cache[site.name].shape[site.dims.index(site.unit_dim)]
        lower = site.unit_dim != "head" and draw.random() < 0.5
        found.append(Target(draw.randrange(size), site.name, tail="lower" if lower else "upper"))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_missing(name: str) -> None:
    model = network(name, torch.float64)
    x = images_for(model)
    found = check(model, x, targets_of(model, x))
    assert found.error.abs().max() <= 1e-10
    assert found.values.abs().amax(1).gt(0).sum() >= 20  # it is not all zeros that agree
    model = network(name, torch.float32)
    found = check(model, x.float(), targets_of(model, x.float()))
    assert found.relative_error.max() <= 1e-4
    assert (found.error / found.values)[:5].abs().max() <= 1e-4  # every class, by its own size


def test_the_terms_have_the_names_of_what_adds() -> None:
    model = network("bcos", torch.float64)
    x = images_for(model)
    found = check(model, x, [Target(0), Target(1, "blocks.0.mlp.hook_post")])
    assert list(found.terms) == ["head.bias"]  # positions are in the attention
    assert found.terms["head.bias"][0].tolist() == [model.head.bias.value] * 2
    assert not found.terms["head.bias"][1].any()

    added = check(network("bcos_sincos", torch.float64), x, [Target(0)])
    assert set(added.terms) == {"positions", "head.bias"}
    assert added.terms["positions"].abs().min() > 1e-6

    relu = network("resnet18", torch.float64)
    terms = check(relu, images_for(relu), [Target(0)]).terms
    assert {"bn1", "layer1.0.bn2", "fc"} <= set(terms)
    assert terms["fc"][0].tolist() == pytest.approx([float(relu.fc.bias[0].detach())] * 2)


@pytest.mark.parametrize("source", ["blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post", None])
def test_between_sites_the_paths_around_are_a_term(source: str | None) -> None:
    model = network("bcos_conv_stem", torch.float64)
    x = images_for(model)
    found = check(model, x, [Target(0), Target(3, "blocks.2.mlp.hook_post")], source=source)
    assert found.error.abs().max() <= 1e-12
    assert ("around" in found.terms) == (source is not None)
    if source == "blocks.1.hook_resid_pre":  # every path leads through it
        assert not found.terms["around"].any() and not found.terms["positions"].any()
    if source == "blocks.1.mlp.hook_post":
        assert found.terms["around"].abs().min() > 0


def test_class_tokens_and_learned_positions_are_positions() -> None:
    model = timm.create_model(
        "bcos_vit_micro_patch8_64", img_size=16, embed_dim=24, depth=1, num_heads=3, num_classes=4,
        positions="learn",
    ).double().eval()  # fmt: skip
    x = torch.rand(2, 6, 16, 16, dtype=torch.float64)
    found = check(model, x, [Target(2)])
    assert found.error.abs().max() <= 1e-12 and "positions" in found.terms


def test_the_table_has_a_row_for_each_target_and_image() -> None:
    model = network("bcos", torch.float64)
    table = check(model, images_for(model), [Target(0), Target(1), Target(2)]).table()
    assert list(table.columns) == ["target", "image", "value", "explained", "head.bias", "error"]
    assert len(table) == 6 and table["error"].abs().max() < 1e-12


def test_what_is_not_linear_is_refused() -> None:
    model = small_vit("average_pooled")
    with pytest.raises(SpecError, match="neither"):
        check(model, images_for(model), [Target(0)])
