from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from polysem.train.card import model_card
from polysem.train.recipe import Recipe, parse_recipe

METRICS: dict[str, Any] = {
    "test_accuracy": 0.9125,
    "test_accuracy_95": [0.8993, 0.9241],
    "test_balanced_accuracy": 0.875,
    "test_calibration_error": 0.0432,
    "test_loss": 0.25,
    "test_images": 2000,
    "test_class_accuracy": [0.875, None],
    "parameters": 1619368,
    "steps": 1200,
    "batch_size": 64,
    "cpu_minutes": 40.25,
    "wall_minutes": 21.5,
    "threads": 2,
    "device": "cpu",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "train_fingerprint": "abc",
    "test_fingerprint": "def",
}


def test_the_card_tells_what_was_measured(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe({"notes": "Not for real images.", "seed": 5})
    card = model_card(recipe, METRICS, classes=("circle", "ring"), command="polysem train r.yaml")
    for words in (
        "# vit_micro_patch8_gap_64, trained on shapes:train?n=70",
        "Not for real images.",
        "**Test accuracy 91.25 %** (95 % Wilson interval 89.93 to 92.41 %; 2,000 images",
        "Balanced accuracy 87.50 %; expected calibration error 4.32 % (15 bins).",
        "| circle | 87.5 % |",
        "| ring | no test image |",
        "    polysem train r.yaml\n",
        "Seed 5; 1,619,368 parameters; 1,200 steps of 64 images; 40.2 CPU minutes, 21.5 minutes",
        "python 3.11.7, torch 2.13.0",
        "fingerprint `abc`",
    ):
        assert words in card


def test_the_recipe_in_the_card_is_the_recipe(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe()
    card = model_card(recipe, METRICS, classes=("circle", "ring"), command="c")
    text = card.split("```yaml\n")[1].split("```")[0]
    assert parse_recipe(yaml.safe_load(text)) == recipe
