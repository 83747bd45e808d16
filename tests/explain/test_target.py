"""What is explained: targets, their text, and what cannot be one."""

from __future__ import annotations

from typing import Any

import pytest
from small_models import small_cnn, small_vit

from polysem.errors import SpecError
from polysem.explain.target import Target, parse_target, sites_of

CLASSES = ("cat", "dog", "3", "tabby cat", "sports car")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("dog", Target(1)),
        ("tabby cat", Target(3)),
        ("3", Target(2)),  # a name before a number
        ("4", Target(4)),
        ("blocks.1.mlp.hook_post:17", Target(17, "blocks.1.mlp.hook_post")),
        (
            "blocks.1.mlp.hook_post:17:lower:mean",
            Target(17, "blocks.1.mlp.hook_post", tail="lower", pool="mean"),
        ),
        ("blocks.0.attn.hook_z:2:cls", Target(2, "blocks.0.attn.hook_z", pool="cls")),
        ("blocks.0.hook_resid_post:2:5", Target(2, "blocks.0.hook_resid_post", position=5)),
        ("hook_pooled:0:lower", Target(0, "hook_pooled", tail="lower")),
    ],
)
def test_a_text_names_a_target(text: str, target: Target) -> None:
    model = small_vit("class_token")
    assert parse_target(text, model, classes=CLASSES) == target
    if target.site is not None:
        assert parse_target(str(target), model) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dgo", "there is no class 'dgo'; did you mean 'dog'"),
        ("zebra", "there are cat, dog, 3, tabby cat, sports car"),
        ("5", "there is no class 5: the model has 5, from 0 on"),
        ("blocks.1.mlp.hook_pots:3", "did you mean 'blocks.1.mlp.hook_post'"),
        ("blocks.9.mlp.hook_post:3", "this model has no site 'blocks.9.mlp.hook_post'; did"),
        ("blocks.1.mlp.hook_post", "names a site; add a unit"),
        ("blocks.1.mlp.hook_post:x", "comes the number of a unit, not 'x'"),
        ("blocks.1.mlp.hook_post:1:uper", "neither upper, lower, max, mean, cls nor"),
        ("blocks.1.mlp.hook_post:1:max:mean", "gives two of 'max' and 'mean'"),
        ("blocks.1.mlp.hook_post:1:max:4", "a position is one patch"),
        ("blocks.1.attn.hook_pattern:1", "blocks.1.attn.hook_z"),
        ("blocks.1.attn.hook_q:1", "decides where heads look"),
        ("blocks.1.attn.hook_z:1:lower", "no lower tail"),
        ("hook_pooled:1:mean", "has no patches to pool"),
    ],
)
def test_what_cannot_be_a_target_gets_a_sentence(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_target(text, small_vit("class_token"), classes=CLASSES)


def test_without_names_a_class_needs_a_number() -> None:
    with pytest.raises(SpecError, match="nothing names the classes"):
        parse_target("dog", small_vit("class_token"))
    assert parse_target("7", small_vit("class_token")) == Target(7)  # shows when the model runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": -1}, "counted from 0"),
        ({"unit": 0, "tail": "left"}, "upper or lower"),
        ({"unit": 0, "tail": "lower"}, "a class has no tails"),
        ({"unit": 0, "site": "layer1.0.hook_post", "pool": "cls"}, "has no class token"),
        ({"unit": 0, "site": "blocks.0.hook_resid_post", "pool": "min"}, "by max, mean or cls"),
        ({"unit": 0, "site": "blocks.0.hook_resid_post", "position": -1}, "counted from 0"),
        ({"unit": 0, "site": "nowhere"}, "not the name of a site"),
    ],
)
def test_parts_have_to_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Target(**options)


def test_sites_are_those_with_units() -> None:
    sites = sites_of(small_vit("class_token"))
    assert "blocks.0.attn.hook_z" in sites
    assert not any(site.endswith(("pattern", "scores", "hook_q", "hook_k")) for site in sites)
    assert "layer1.0.hook_post" in sites_of(small_cnn("resnet18"))
    assert sites_of(None) == []  # type: ignore[arg-type]
