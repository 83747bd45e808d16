"""What a recipe may say about methods, and what the model and the training make of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polysem.errors import RecipeError
from polysem.models.checkpoint import read_checkpoint
from polysem.models.dropout import DropHead
from polysem.models.load import load_model
from polysem.train.build import (
    build_model,
    choose_optimiser,
    follow_steps,
    give_strengths_a_rate,
    with_methods,
)
from polysem.train.loop import Progress, train
from polysem.train.recipe import Recipe, parse_recipe, recipe_to_dict
from polysem.train.schedules import cosine_schedule

MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("drop_head", "half", ["drop_head is 'half'", "mode, p, p_start, p_end"]),
        ("drop_head", {"mode": "hafl"}, ["drop_head.mode", "did you mean 'half'", "'scheduled'"]),
        ("drop_head", {"rate": 0.1}, ["unknown key 'drop_head.rate'", "mode, p, p_start"]),
        ("drop_head", {"mode": "half", "p": 0.1}, ["drop_head", "takes no rate; got p"]),
        ("drop_head", {"mode": "bernoulli"}, ["drop_head", "takes p; got none"]),
        ("drop_head", {"mode": "bernoulli", "p": 1}, ["drop_head.p is 1", "less than 1"]),
        ("drop_head", {"mode": "scheduled", "p": 0.2}, ["takes p_start and p_end; got p"]),
        ("attention", {"kind": "satta"}, ["did you mean 'sata'", "'attn_scale'", "'manhattan'"]),
        ("attention", {"treshold": 0.1}, ["'attention.treshold'", "did you mean 'threshold'"]),
        ("attention", {"threshold": 0.1}, ["'attention.kind' is missing", "kind, threshold"]),
        (
            "attention",
            {"kind": "attn_scale", "threshold": 0.1},
            ["kind 'attn_scale' takes lr; got threshold"],
        ),
        (
            "attention",
            {"kind": "sata", "local": True},
            ["kind 'sata' takes threshold, strength, lr; got local"],
        ),
        ("attention", {"kind": "sata", "threshold": 1}, ["attention.threshold is 1", "less than"]),
        ("attention", {"kind": "manhattan", "start": 0}, ["attention.start", "greater than 0"]),
        ("feat_scale", "maybe", ["feat_scale is 'maybe'", "boolean"]),
        ("attention", {"kind": "cosine", "eps": 0}, ["attention.eps is 0", "greater than 0"]),
        ("attention", {"kind": "sata", "tau": 1}, ["kind 'sata' takes threshold", "got tau"]),
        ("center_norm", "yes!", ["center_norm is 'yes!'"]),
        ("dropout", 0.1, ["dropout is 0.1", "hidden, attention, tokens, head"]),
        ("dropout", {"hidden": 1.2}, ["dropout.hidden is 1.2", "less than 1"]),
        ("spatial_dropout", True, ["spatial_dropout is True", "not true or false"]),
        ("patch_dropout", {"keep": 0}, ["patch_dropout.keep is 0", "above 0 up to 1"]),
        ("patch_dropout", {"keep": [0.9, 0.5]}, ["patch_dropout.keep", "two that rise"]),
        ("patch_dropout", {"keep": True}, ["patch_dropout.keep is True", "one number"]),
        ("patch_dropout", {"keep": [0.1, 0.2, 0.3]}, ["patch_dropout.keep", "or two"]),
        ("patch_dropout", {"keep": "half"}, ["patch_dropout.keep is 'half'", "one number"]),
        ("patch_dropout", {}, ["'patch_dropout.keep' is missing"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    tiny_recipe: MakeRecipe, key: str, value: Any, said: list[str]
) -> None:
    with pytest.raises(RecipeError) as raised:
        tiny_recipe({key: value})
    for words in said:
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("heads", "rate"),
    [
        (None, None),
        ({}, "half"),
        ({"mode": "bernoulli", "p": 0.3}, 0.3),
        ({"mode": "scheduled", "p_start": 0.2, "p_end": 0.4}, 0.2),
    ],
)
@pytest.mark.parametrize("bcos", [False, True])
def test_heads_are_left_out_of_the_model(
    tiny_recipe: MakeRecipe, bcos: bool, heads: Any, rate: Any
) -> None:
    recipe = tiny_recipe({"drop_head": heads}, bcos=bcos)
    assert parse_recipe(recipe_to_dict(recipe)) == recipe
    model = build_model(with_methods(recipe), n_classes=3)
    drops = [module for module in model.modules() if isinstance(module, DropHead)]
    assert len(drops) == (0 if rate is None else 2)
    for drop in drops:
        assert drop.exactly_half is (rate == "half")
        assert rate == "half" or float(drop.rate) == pytest.approx(rate)


VIT = "vit_micro_patch8_gap_64"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"drop_head": {}, "model": {"name": "resnet18"}},
            r"drop_head is not for 'resnet18'.*polysem's",
        ),
        (
            {"drop_head": {}, "model": {"name": VIT, "args": {"drop_head": 0.1}}},
            r"drop_head and model\.args\.drop_head say the same",
        ),
        (
            {"attention": {"kind": "sata"}, "model": {"name": "vit_tiny_patch16_224"}},
            "attention is",
        ),
        ({"spatial_dropout": 0.1, "model": {"name": "resnet18"}}, "spatial_dropout is not for"),
        ({"dropout": {"hidden": 0.1}, "model": {"name": "resnet20_32"}}, r"dropout\.hidden is not"),
        (
            {"patch_dropout": {"keep": (0.5, 1)}, "model": {"name": "vit_tiny_patch16_224"}},
            "patch_dropout is not for",
        ),
        (
            {"patch_dropout": {"keep": 0.5}, "attention": {"kind": "manhattan"}},
            "patch_dropout does not go with attention.kind 'manhattan'.*allowed.*softmax, sata",
        ),
        (
            {"attention": {"kind": "manhattan", "decomposed": True}},
            r"attention\.decomposed.*model\.args\.positions may be sincos, learn or none",
        ),
        (
            {"spatial_dropout": 0.1, "dropout": {"hidden": 0.1}},
            r"spatial_dropout and dropout\.hidden.*give one",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    tiny_recipe: MakeRecipe, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    recipe = tiny_recipe({**changes, "data": {"train": "nowhere"}})
    with pytest.raises(RecipeError, match=said):
        train(recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


EVERYTHING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"attention": {"kind": "softmax"}}, {"attention": {"kind": "softmax"}}),
    (
        {"attention": {"kind": "sata", "threshold": 0.2, "strength": 0.3}},
        {"attention": {"kind": "sata", "threshold": 0.2, "strength": 0.3}},
    ),
    ({"attention": {"kind": "attn_scale"}}, {"attention": {"kind": "attn_scale"}}),
    (
        {"attention": {"kind": "manhattan", "start": 3, "spread": 2, "local": True}},
        {"attention": {"kind": "manhattan", "start": 3.0, "spread": 2.0, "local": True}},
    ),
    (
        {"attention": {"kind": "cosine", "tau": 5, "eps": 0.01, "normalize_values": False}},
        {"attention": {"kind": "cosine", "tau": 5.0, "eps": 0.01, "normalize_values": False}},
    ),
    ({"center_norm": True, "post_norm": True}, {"center_norm": True, "post_norm": True}),
    (
        {"weighted_residual": True, "spectral_init": True},
        {"weighted_residual": True, "spectral_init": True},
    ),
    ({"feat_scale": True}, {"feat_scale": True}),
    (
        {"dropout": {"hidden": 0.1, "attention": 0.2, "tokens": 0.3, "head": 0.4}},
        {
            "proj_drop_rate": 0.1,
            "attn_drop_rate": 0.2,
            "pos_drop_rate": 0.3,
            "drop_rate": 0.4,
        },
    ),
    ({"spatial_dropout": 0.1}, {"spatial_drop_rate": 0.1}),
    ({"patch_dropout": {"keep": 0.75}}, {"patch_drop_rate": 0.25}),
    ({"patch_dropout": {"keep": [0.5, 1]}}, {"patch_drop_rate": [0.0, 0.5]}),
]


@pytest.mark.parametrize("changes", EVERYTHING, ids=lambda pair: "-".join(pair[0]))
@pytest.mark.parametrize("bcos", [False, True])
def test_each_key_becomes_arguments_of_the_model(
    tiny_recipe: MakeRecipe, bcos: bool, changes: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    recipe = tiny_recipe(changes[0], bcos=bcos)
    assert parse_recipe(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe
    args = with_methods(recipe).args
    assert {**recipe.model.args, **changes[1]} == args
    model = build_model(with_methods(recipe), n_classes=3).train()
    assert model(torch.rand(2, 6 if bcos else 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["sata", "attn_scale"])
def test_strengths_may_learn_at_a_rate_of_their_own(
    tiny_recipe: MakeRecipe, kind: str, name: str
) -> None:
    recipe = tiny_recipe(
        {"attention": {"kind": kind, "lr": 7e-5}, "optimiser": {"name": name, "lr": 3e-3}}
    )
    assert "lr" not in with_methods(recipe).args["attention"]
    model = build_model(with_methods(recipe), n_classes=3)
    optimiser = choose_optimiser(recipe.optimiser, model)
    give_strengths_a_rate(optimiser, model, None)
    before = [len(group["params"]) for group in optimiser.param_groups]
    give_strengths_a_rate(optimiser, model, 7e-5)
    assert sum(before) == sum(len(group["params"]) for group in optimiser.param_groups)
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    for key, parameter in model.named_parameters():
        lr, decay = rates[id(parameter)]
        assert lr == (7e-5 if "strength" in key else 3e-3)
        assert decay == 0 or "strength" not in key
    schedule = cosine_schedule(optimiser, total_steps=8, warmup_steps=0, final_lr=0.0)
    schedule.step_update(4)
    assert {group["lr"] for group in optimiser.param_groups} == {3.5e-5, 1.5e-3}
    model(torch.rand(2, 3, 64, 64)).square().sum().backward()
    optimiser.step()


def test_plain_recipes_are_left_alone(tiny_recipe: MakeRecipe) -> None:
    assert with_methods(tiny_recipe()) == tiny_recipe().model


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_patch16_224", {"dropout": {"hidden": 0.1}, "patch_dropout": {"keep": 0.5}}),
        ("bcos_resnet20_32", {"spatial_dropout": 0.2, "dropout": {"head": 0.1}}),
    ],
)
def test_other_models_take_what_they_have(
    tiny_recipe: MakeRecipe, name: str, changes: dict[str, Any]
) -> None:
    recipe = tiny_recipe({**changes, "model": {"name": name, "args": {}}})
    assert build_model(with_methods(recipe), n_classes=3).training


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_rate_of_dropping_heads_follows_the_steps(tiny_recipe: MakeRecipe, warmup: int) -> None:
    recipe = tiny_recipe(
        {
            "drop_head": {"mode": "scheduled", "p_start": 0.2, "p_end": 0.4},
            "schedule": {"warmup_steps": warmup},
        }
    )
    model = build_model(with_methods(recipe), n_classes=3)
    stepped: list[int] = []

    class Rate:
        step_update = staticmethod(stepped.append)

    follow = follow_steps(recipe, model, Rate(), total_steps=6)
    rates = []
    for step in (*range(7), 3):
        follow(step)
        rates.append(float(model.blocks[1].attn.drop_head.rate))
    climb = [0.4 * (t - warmup) / (6 - warmup) for t in range(warmup, 7)]
    fall = [0.2 * (1 - t / warmup) for t in range(warmup)]
    assert rates == pytest.approx([*fall, *climb, (fall + climb)[3]])
    assert stepped == [0, 1, 2, 3, 4, 5, 6, 3]


@pytest.mark.parametrize("bcos", [False, True])
def test_a_resumed_training_leaves_out_the_same(
    tiny_recipe: MakeRecipe, tmp_path: Path, bcos: bool
) -> None:
    everything = {
        "drop_head": {"mode": "scheduled", "p_start": 0.5, "p_end": 0.5},
        "attention": {"kind": "attn_scale" if bcos else "sata", "lr": 1e-4},
        "feat_scale": bcos,
        "spatial_dropout": 0.1,
        "dropout": {"attention": 0.1, "tokens": 0.1},
        "patch_dropout": {"keep": [0.5, 1]},
        "snapshots": 0,
    }
    recipe = tiny_recipe(everything, bcos=bcos)

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == 7:
            signal.raise_signal(signal.SIGINT)

    train(recipe, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "parts", on_progress=stop)
    train(recipe, out=tmp_path / "parts", resume=True)
    whole, parts = (
        read_checkpoint(tmp_path / name / "model.safetensors") for name in ("whole", "parts")
    )
    assert all(
        torch.equal(whole.state_dict[key], parts.state_dict[key]) for key in whole.state_dict
    )
    assert whole.model_args["drop_head"] == 0.5
    loaded = load_model(tmp_path / "whole" / "model.safetensors").model
    x = torch.rand(2, 6 if bcos else 3, 64, 64)
    assert torch.equal(loaded(x), loaded(x))

    plain = tmp_path / "plain"
    train(recipe.model_copy(update={"drop_head": None}), out=plain)
    other = read_checkpoint(plain / "model.safetensors").state_dict
    assert any(not torch.equal(whole.state_dict[key], other[key]) for key in other)
