"""Words: the vocabulary holds together, and captions say what a scene holds."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from polysem.data.scenes import CONCEPTS, PALETTE, Backdrop, Scene, Thing, caption

BACKDROP = Backdrop("bricked", (120, 121, 122), 12.0, (0.0, 0.0), 0.5, 0.1, (0.0, 0.0), 7)
BIG = Thing(
    "circle", "red", "striped", "large", 0.4, 0.5, 0.25, 0.0, 0.0, (0.0, 0.0), (216, 36, 40)
)
STAR = replace(BIG, shape="star", colour="blue", texture="solid", size="small", x=0.9, y=0.6)


def test_vocabulary() -> None:
    assert [len(CONCEPTS[group]) for group in ("shape", "colour", "texture")] == [8, 8, 5]
    names = [name for group in CONCEPTS.values() for name in group]
    assert len(set(names)) == len(names)


def test_colours_lie_far_apart() -> None:
    for one, other in combinations(PALETTE.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 60


def test_caption_names_everything_but_a_solid_fill() -> None:
    scene = Scene((BIG, STAR), (0, 1), BACKDROP)
    assert caption(scene) == (
        "a large red striped circle left of a small blue star on a brick background"
    )


@pytest.mark.parametrize(
    ("x", "y", "side"),
    [(0.9, 0.6, "left of"), (0.1, 0.6, "right of"), (0.5, 0.9, "above"), (0.3, 0.1, "below")],
)
def test_caption_says_on_which_side(x: float, y: float, side: str) -> None:
    scene = Scene((BIG, replace(STAR, x=x, y=y)), (0, 1), BACKDROP)
    assert f"circle {side} a small" in caption(scene)


def test_caption_of_one_and_of_three() -> None:
    cloudy = replace(BACKDROP, kind="cloudy")
    assert caption(Scene((BIG,), (0,), cloudy)) == (
        "a large red striped circle on a cloudy background"
    )
    three = Scene((BIG, STAR, replace(STAR, y=0.1, x=0.4, shape="ring")), (0, 1, 2), cloudy)
    assert caption(three) == (
        "a large red striped circle left of a small blue star and below a small blue ring "
        "on a cloudy background"
    )
