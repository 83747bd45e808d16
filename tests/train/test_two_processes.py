"""Two processes on the CPU (gloo) train what one process trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_trainings import nearly_the_same
from together import together

from polysem.models.checkpoint import read_checkpoint
from polysem.train.loop import train
from polysem.train.recipe import Recipe, recipe_to_dict


def test_two_processes_train_what_one_trains(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        {"optimiser": {"lr": 1e-4}, "schedule": {"epochs": 2}, "threads": 1, "accumulate": 2}
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe)), encoding="utf-8")
    first, second = together("train", path, "--out", tmp_path / "two", "--device", "cpu")
    assert "wrote" in first
    assert "wrote" not in second
    train(recipe, out=tmp_path / "one", device="cpu")
    one, two = (
        read_checkpoint(tmp_path / name / "model.safetensors").state_dict for name in ("one", "two")
    )
    # sums in another order, no more: the images and what is done to them are the same
    assert nearly_the_same(one, two)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for alone, both in zip(*logs, strict=True):
        assert alone["train_loss"] == pytest.approx(both["train_loss"], rel=1e-4)
        assert alone["test_loss"] == pytest.approx(both["test_loss"], rel=1e-4)
    assert "2 processes of 1 thread" in (tmp_path / "two" / "README.md").read_text("utf-8")
