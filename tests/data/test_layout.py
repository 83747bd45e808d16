"""Scenes are independent of each other, their concepts of one another, and the largest leads."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from polysem.data.dice import fold
from polysem.data.layout import (
    JITTER,
    LEAD,
    LEAN,
    RADII,
    THREE_THINGS,
    TWO_THINGS,
    SceneTable,
    sample,
    sample_kinds,
)
from polysem.data.scenes import CONCEPTS, PALETTE

SEEDS = st.integers(0, 2**63 - 1)
GROUPS = ("shape", "colour", "texture")


@pytest.fixture(scope="module")
def table() -> SceneTable:
    return sample(fold(5, 0), np.arange(12_000))


@given(seed=SEEDS, index=st.integers(0, 10**7))
@settings(max_examples=30, deadline=None)
def test_a_scene_depends_on_key_and_number_only(seed: int, index: int) -> None:
    key = fold(seed, 1)
    alone = sample(key, np.array([index])).scene(0)
    assert alone == sample(key, np.array([index + 2, 0, index])).scene(2)


def test_kinds_without_layout_are_those_of_the_layout(table: SceneTable) -> None:
    count, kinds = sample_kinds(fold(5, 0), np.arange(12_000))
    assert np.array_equal(count, table.count)
    assert all(np.array_equal(kinds[group], table.kinds[group]) for group in CONCEPTS)


def is_uniform(kinds: npt.NDArray[np.int64], choices: int) -> bool:
    counts = np.bincount(kinds.ravel(), minlength=choices)
    return len(counts) == choices and float(stats.chisquare(counts).pvalue) > 1e-4


def test_concepts_are_balanced(table: SceneTable) -> None:
    for group in GROUPS:
        for number in range(3):
            assert is_uniform(table.kinds[group][:, number], len(CONCEPTS[group])), (group, number)
    assert is_uniform(table.kinds["background"], len(CONCEPTS["background"]))
    for least, share in ((2, TWO_THINGS), (3, THREE_THINGS)):
        assert (table.count >= least).mean() == pytest.approx(share, abs=0.02)


def test_concepts_are_independent(table: SceneTable) -> None:
    columns = {
        (group, number): table.kinds[group][:, number] for group in GROUPS for number in range(3)
    }
    columns |= {("background", 0): table.kinds["background"], ("count", 0): table.count}
    columns |= {("size", number): table.kinds["size"][:, number] for number in range(2)}
    # where the largest object lies tells nothing of what anything looks like
    for axis in range(2):
        columns["place", axis] = (table.centre[:, 0, axis] * 4).astype(np.int64)
    for one, other in combinations(columns, 2):
        if {one[0], other[0]} <= {"size", "place", "count"}:
            continue
        crossed = stats.contingency.crosstab(columns[one], columns[other]).count
        assert stats.chi2_contingency(crossed).pvalue > 1e-5, (one, other)


def test_first_object_leads_and_sizes_keep_to_their_class(table: SceneTable) -> None:
    assert np.all(table.radius[:, :1] >= LEAD * table.radius[:, 1:] - 1e-12)
    for size, (low, high) in enumerate(RADII):
        radii = table.radius[table.kinds["size"] == size]
        assert len(radii) > 1000
        assert low <= radii.min() <= radii.max() <= high
    classes = table.kinds["size"]
    assert set(np.unique(classes[:, 0])) == {1, 2}
    assert np.all(classes[:, :1] > classes[:, 1:])


def test_objects_are_inside_and_apart(table: SceneTable) -> None:
    assert np.all(table.centre >= table.radius[..., None])
    assert np.all(table.centre <= 1 - table.radius[..., None])
    for one, other in combinations(range(3), 2):
        shown = table.count > other
        way = (table.centre[:, one] - table.centre[:, other])[shown]
        reach = (table.radius[:, one] + table.radius[:, other])[shown]
        assert np.all(np.linalg.norm(way, axis=1) >= reach)


def test_rotation_and_place_vary_fully(table: SceneTable) -> None:
    scenes = [table.scene(row) for row in range(2000)]
    leans = [thing.turn / LEAN for scene in scenes for thing in scene.things]
    assert stats.kstest(leans, "uniform", args=(-1, 2)).pvalue > 1e-4
    turns = [thing.fill_turn for scene in scenes for thing in scene.things]
    assert stats.kstest(turns, "uniform").pvalue > 1e-4
    small = [t for scene in scenes for t in scene.things if t.size == "small"]
    assert min(t.x for t in small) < 0.15
    assert max(t.y for t in small) > 0.85
    assert {scene.order for scene in scenes if len(scene.things) == 3} >= {(0, 1, 2), (2, 1, 0)}


def test_colours_stay_near_the_palette_and_backdrops_muted(table: SceneTable) -> None:
    for row in range(500):
        scene = table.scene(row)
        for thing in scene.things:
            assert np.abs(np.subtract(thing.rgb, PALETTE[thing.colour])).max() <= JITTER
        assert max(scene.backdrop.rgb) - min(scene.backdrop.rgb) <= 32
        assert 7 <= abs(scene.backdrop.contrast) <= 18
