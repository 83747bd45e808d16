from __future__ import annotations

from collections.abc import Callable

import pytest

from polysem.train.bench import MEANINGS, bench_train
from polysem.train.recipe import Recipe


def test_three_loops_and_the_parts_of_a_step(tiny_recipe: Callable[..., Recipe]) -> None:
    said: list[str] = []
    recipe = tiny_recipe({"workers": 0, "ema": 0.9})
    speeds, parts = bench_train(recipe, steps=2, repeats=2, device="cpu", report=said.append)
    assert speeds["loop"].tolist() == ["bare", "cached", "streamed"]
    assert (speeds["images_per_s"] > 0).all()
    assert speeds.loc[0, "ratio"] == 1
    assert len(said) == 2
    assert {*speeds.columns, *parts.columns} == set(MEANINGS)
    named = parts.set_index("part")["share"]
    assert named.drop("network").sum() == pytest.approx(1)
    assert named["network"] == pytest.approx(named["forward"] + named["backward"])
    assert {"fetch", "augment", "normalise", "clip", "optimiser", "moving average"} < set(
        named.index
    )
