"""Trainings that start from a checkpoint: what is taken over, what is not, what is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polysem.errors import CheckpointError, MissingError, RecipeError
from polysem.models.bcosify_checkpoint import bcosify_checkpoint
from polysem.models.checkpoint import read_checkpoint, save_checkpoint
from polysem.models.conversion import Conversion
from polysem.models.load import load_model
from polysem.models.registry import create
from polysem.models.transform import Transform
from polysem.train.build import build_model, with_methods
from polysem.train.loop import Progress, train
from polysem.train.recipe import Recipe, parse_recipe, recipe_to_dict
from polysem.train.start import start_weights, with_start

MakeRecipe = Callable[..., Recipe]
ARCH = "vit_micro_patch8_gap_64"
ARGS = {"embed_dim": 16, "depth": 2, "num_heads": 2}
TRANSFORM = Transform(size=(64, 64), crop_pct=0.9)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return saved(tmp_path / "plain.safetensors")


def saved(path: Path, n_classes: int = 8) -> Path:
    torch.manual_seed(3)
    args = {**ARGS, "num_classes": n_classes}
    save_checkpoint(path, ARCH, args, create(ARCH, args).state_dict(), transform=TRANSFORM)
    return path


def start(weights: Path, **more: Any) -> dict[str, Any]:
    """Return changes of the tiny recipe that start from a file."""
    return {"model": {"name": "", "args": {}, "weights": str(weights), **more}}


def built(recipe: Recipe, n_classes: int) -> tuple[Any, Transform]:
    torch.manual_seed(0)
    model = build_model(recipe.model, n_classes=n_classes)
    return model, start_weights(recipe, model)


def test_name_arguments_and_digest_come_from_the_file(tiny_recipe: MakeRecipe, plain: Path) -> None:
    recipe = with_start(tiny_recipe(start(plain, args={"drop_path_rate": 0.1})))
    assert recipe.model.name == ARCH
    assert recipe.model.args == {**ARGS, "drop_path_rate": 0.1}
    assert recipe.model.sha256 == load_model(plain).sha256
    assert with_start(recipe) == recipe
    assert parse_recipe(recipe_to_dict(recipe)) == recipe
    random = tiny_recipe()
    assert with_start(random) is random


def test_weights_and_transform_come_from_the_file(tiny_recipe: MakeRecipe, plain: Path) -> None:
    model, transform = built(with_start(tiny_recipe(start(plain))), 8)
    assert transform == TRANSFORM
    weights = read_checkpoint(plain).state_dict
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_classifier_of_other_classes_is_new(tiny_recipe: MakeRecipe, plain: Path) -> None:
    model, _ = built(with_start(tiny_recipe(start(plain))), 5)
    weights = read_checkpoint(plain).state_dict
    for key, value in model.state_dict().items():
        if key.startswith("head."):
            assert value.shape[0] == 5
        else:
            assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("base", [ARCH, "resnet20_32"])
def test_so_is_that_of_a_b_cosified_model(
    tiny_recipe: MakeRecipe, tmp_path: Path, base: str
) -> None:
    spec: Any = saved(tmp_path / "plain.pt") if base == ARCH else "timm:resnet20_32"
    bcosify_checkpoint(spec, tmp_path / "made.safetensors")
    recipe = with_start(tiny_recipe(start(tmp_path / "made.safetensors")))
    model, transform = built(recipe, 3)
    assert transform.inverse
    assert model(torch.rand(2, 6, *transform.size)).shape == (2, 3)


def test_methods_of_the_recipe_go_before_those_of_the_file(
    tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    args = {**ARGS, "num_classes": 8, "drop_head": "half"}
    model = create(ARCH, args)
    path = tmp_path / "plain.pt"
    save_checkpoint(path, ARCH, args, model.state_dict(), transform=TRANSFORM)
    heads = {"mode": "bernoulli", "p": 0.25}
    recipe = with_start(tiny_recipe({**start(path), "drop_head": heads}))
    assert with_methods(recipe).args == {**ARGS, "drop_head": 0.25}
    assert with_methods(with_start(tiny_recipe(start(path)))).args["drop_head"] == "half"


def test_bare_weights_of_a_named_model(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = create(ARCH, {**ARGS, "num_classes": 8})
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    named = {"name": ARCH, "args": ARGS}
    recipe = with_start(tiny_recipe(start(tmp_path / "bare.pt", **named)))
    again, _ = built(recipe, 8)
    assert torch.equal(again.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)  # type: ignore[index,union-attr]
    with pytest.raises(RecipeError, match=r"name it in model\.name"):
        with_start(tiny_recipe(start(tmp_path / "bare.pt")))


def test_what_does_not_fit_is_refused(tiny_recipe: MakeRecipe, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds a vit_micro_patch8_gap_64; leave"):
        with_start(tiny_recipe(start(plain, name="bcos_vit_micro_patch8_64")))
    with pytest.raises(RecipeError, match=r"model\.sha256"):
        with_start(tiny_recipe(start(plain, sha256="0" * 64)))
    with pytest.raises(MissingError, match="nowhere"):
        with_start(tiny_recipe(start(tmp_path / "nowhere.pt")))
    with pytest.raises(RecipeError, match="give name"):
        tiny_recipe({"model": {"name": "", "args": {}}})
    with pytest.raises(CheckpointError, match="does not fit vit_micro"):
        built(with_start(tiny_recipe(start(plain, args={"embed_dim": 32}))), 8)


def test_a_b_cosified_model_is_fine_tuned_into_a_b_cos_network(
    tiny_recipe: MakeRecipe, plain: Path, tmp_path: Path
) -> None:
    begin = tmp_path / "begin.safetensors"
    bcosify_checkpoint(plain, begin)
    recipe = tiny_recipe(
        {**start(begin), "schedule": {"conversion_steps": 6}, "ema": 0.9, "batch_size": 16}
    )
    once = tmp_path / "once"
    train(recipe, out=once)
    # untouched at first, the classifier too, as the colours of the shapes are 8 as well
    first = load_model(once / "snapshots" / "step_0000000.safetensors")
    assert first.sha256 == load_model(begin).sha256
    last: Any = load_model(once / "model.safetensors").model
    average: Any = load_model(once / "average.safetensors").model
    assert last.conversion.share == average.conversion.share == 1
    assert not torch.equal(last.head.linear.weight, first.model.head.linear.weight)  # type: ignore[union-attr,operator]
    card = (once / "README.md").read_text(encoding="utf-8")
    assert "conversion_steps: 6" in card and load_model(begin).sha256 in card

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "twice", on_progress=stop)
    train(recipe, out=tmp_path / "twice", resume=True)
    again = read_checkpoint(tmp_path / "twice" / "model.safetensors").state_dict
    assert all(torch.equal(again[key], value) for key, value in last.state_dict().items())
    log = (once / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["step"] == 12


def test_by_default_it_is_converted_at_once(
    tiny_recipe: MakeRecipe, plain: Path, tmp_path: Path
) -> None:
    begin = tmp_path / "begin.safetensors"
    bcosify_checkpoint(plain, begin)
    shares: list[float] = []
    recipe = tiny_recipe({**start(begin), "schedule": {"epochs": 1, "warmup_steps": 0}})
    original = Conversion.left_of

    def noting(conversion: Conversion, term: Any) -> Any:
        shares.append(conversion.share)
        return original(conversion, term)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conversion, "left_of", noting)
        train(recipe, out=tmp_path / "out")
    assert set(shares) == {1.0}


@pytest.mark.parametrize(
    ("bcosified", "steps", "named"), [(False, 3, "B-cosified model"), (True, 12, "only 12 steps")]
)
def test_a_conversion_that_cannot_be_is_refused_before_any_work(
    tiny_recipe: MakeRecipe, plain: Path, tmp_path: Path, bcosified: bool, steps: int, named: str
) -> None:
    begin = plain
    if bcosified:
        begin = tmp_path / "begin.safetensors"
        bcosify_checkpoint(plain, begin)
    recipe = tiny_recipe({**start(begin), "schedule": {"conversion_steps": steps}})
    with pytest.raises(RecipeError, match=named):
        train(recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
