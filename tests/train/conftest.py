from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from polysem.train.recipe import Recipe, parse_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def tiny_recipe() -> MakeRecipe:
    """Return a maker of recipes that take a second: a ViT of ten thousand weights, 70 images."""

    def make(changes: Mapping[str, Any] | None = None, *, bcos: bool = False) -> Recipe:
        data: dict[str, Any] = {
            "model": {
                "name": "bcos_vit_micro_patch8_64" if bcos else "vit_micro_patch8_gap_64",
                "args": {"embed_dim": 16, "depth": 2, "num_heads": 2},
            },
            "data": {"train": "shapes:train?n=70", "test": "shapes:test?n=30"},
            "optimiser": {"lr": 1e-3, "weight_decay": 0.05},
            "schedule": {"epochs": 3, "warmup_steps": 2},
            "augment": {"flip": True, "turn": True, "crop_padding": 3},
            "batch_size": 16,
            "snapshots": 4,
            "checkpoint_every": 5,
        }
        for key, value in (changes or {}).items():
            both = isinstance(value, Mapping) and isinstance(data.get(key), Mapping)
            data[key] = {**data[key], **value} if both else value
        return parse_recipe(data)

    return make
