"""What a recipe may say about methods, and what the model and the training make of it."""

from __future__ import annotations

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
from polysem.train.build import build_model, follow_steps, with_methods
from polysem.train.loop import Progress, train
from polysem.train.recipe import Recipe, parse_recipe, recipe_to_dict

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


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "resnet18"}, "drop_head needs a vision transformer of polysem's"),
        (
            {"name": "vit_micro_patch8_gap_64", "args": {"drop_head": 0.1}},
            "drop_head and model.args.drop_head say the same",
        ),
    ],
)
def test_a_model_that_does_not_go_with_a_method(
    tiny_recipe: MakeRecipe, model: dict[str, Any], said: str
) -> None:
    recipe = tiny_recipe({"drop_head": {}}).model_copy(
        update={"model": tiny_recipe().model.model_copy(update=model)}
    )
    with pytest.raises(RecipeError, match=said):
        with_methods(recipe)


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
def test_a_resumed_training_leaves_out_the_same_heads(
    tiny_recipe: MakeRecipe, tmp_path: Path, bcos: bool
) -> None:
    recipe = tiny_recipe(
        {"drop_head": {"mode": "scheduled", "p_start": 0.5, "p_end": 0.5}, "snapshots": 0},
        bcos=bcos,
    )

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
