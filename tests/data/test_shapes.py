"""Labels, concepts, masks, captions and pixels all tell of the same scene, everywhere."""

import hashlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polysem.data.layout import JITTER
from polysem.data.scenes import CONCEPTS, PALETTE
from polysem.data.shapes import Shapes, shapes_from_spec
from polysem.errors import SpecError

SEEDS = st.integers(0, 2**63 - 1)
OBJECT_GROUPS = ("shape", "colour", "texture", "size")


def digest(data: Shapes) -> str:
    return hashlib.sha256(data.array()[0].tobytes()).hexdigest()


def test_defaults() -> None:
    train, test = Shapes(), Shapes("test")
    assert (len(train), len(test)) == (10_000, 2_000)
    assert (train.name, test.name) == ("shapes:train", "shapes:test")
    assert test.keys[12] == "shapes/test/0000012"
    assert train.classes == CONCEPTS["shape"]
    assert train[-1].size == (64, 64)
    assert train[0].mode == "RGB"


def test_another_process_draws_the_same_bits() -> None:
    code = (
        "import hashlib; from polysem.data.shapes import Shapes;"
        "data = Shapes('test', n=20, seed=3, size=48);"
        "print(hashlib.sha256(data.array()[0].tobytes()).hexdigest(), data.fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = Shapes("test", n=20, seed=3, size=48)
    assert done.stdout.split() == [digest(here), here.fingerprint]


def test_workers_draw_the_same_bits() -> None:
    data = Shapes("train", n=1100, size=16)
    alone, labels = data.array()
    shared, same_labels = data.array(workers=2)
    assert np.array_equal(alone, shared)
    assert np.array_equal(labels, same_labels)


def test_pickled_copy_is_the_same() -> None:
    data = Shapes("test", n=30, seed=2, label="colour")
    data.read(3)
    sent = pickle.dumps(data)
    again = pickle.loads(sent)
    assert len(sent) < 20_000
    assert (again.name, again.fingerprint) == (data.name, data.fingerprint)
    assert np.array_equal(again.labels, data.labels)
    assert digest(again) == digest(data)


def test_longer_sets_continue_shorter_ones_and_seeds_and_splits_differ() -> None:
    short = Shapes("train", n=5)
    assert digest(short) == hashlib.sha256(Shapes(n=9).array(range(5))[0].tobytes()).hexdigest()
    others = [Shapes("test", n=5), Shapes("train", n=5, seed=1), Shapes("train", n=6)]
    assert len({digest(data) for data in [short, *others]}) == 4


def test_splits_share_no_scene() -> None:
    train, test = Shapes("train", n=3000), Shapes("test", n=500)
    seen = {train.scene(index) for index in range(3000)}
    assert len(seen) == 3000
    assert not seen & {test.scene(index) for index in range(500)}


def test_fingerprint_tells_every_option_apart() -> None:
    sets = [
        Shapes("test", n=5),
        Shapes("train", n=5),
        Shapes("test", n=6),
        Shapes("test", n=5, size=32),
        Shapes("test", n=5, seed=1),
        Shapes("test", n=5, label="texture"),
    ]
    assert len({data.fingerprint for data in sets}) == len(sets)
    assert Shapes("test", n=5).fingerprint == sets[0].fingerprint
    assert re.fullmatch("[0-9a-f]{64}", sets[0].fingerprint)


def test_array_is_what_read_gives() -> None:
    data = Shapes("test", n=1030, size=24)
    numbers = [1029, 0, 511, 512, -1]
    pictures, labels = data.array(numbers)
    assert pictures.dtype == np.uint8
    for number, picture, label in zip(numbers, pictures, labels, strict=True):
        assert np.array_equal(picture, np.asarray(data[number]))
        assert data.labels is not None
        assert label == data.labels[number]
    assert data.array([])[0].shape == (0, 24, 24, 3)
    with pytest.raises(IndexError, match="no image 1030"):
        data.array([1030])
    with pytest.raises(IndexError, match="no image -1031"):
        data.scene(-1031)


@given(seed=SEEDS, split=st.sampled_from(["train", "test"]), index=st.integers(0, 700))
@settings(max_examples=40, deadline=None)
def test_all_accounts_of_an_image_agree(seed: int, split: str, index: int) -> None:
    data = shapes_from_spec(f"shapes:{split}?n=701&seed={seed}")
    scene, masks = data.scene(index), data.masks(index)
    present = data.concept_matrix()[index]
    shown = {getattr(thing, group) for thing in scene.things for group in OBJECT_GROUPS}
    shown.add(f"{scene.backdrop.kind} background")
    assert {name for name, there in zip(data.concepts, present, strict=True) if there} == shown
    assert masks.dtype == np.bool_
    assert masks.shape == (29, 64, 64)
    assert np.array_equal(masks.any(axis=(1, 2)), present)
    caption = data.caption(index).replace("brick ", "bricked ")
    assert all(name in caption for name in shown - {"solid"})
    # each pixel is the background's, or has one shape, one colour, one texture and one size
    background = masks[-5:].sum(axis=0)
    start = 0
    for group in OBJECT_GROUPS:
        stop = start + len(CONCEPTS[group])
        assert np.array_equal(masks[start:stop].sum(axis=0), 1 - background)
        start = stop
    for label in ("shape", "colour", "texture"):
        named = shapes_from_spec(f"shapes:{split}?n=701&seed={seed}&label={label}")
        assert named.labels is not None
        assert named.classes is not None
        assert named.classes[named.labels[index]] == getattr(scene.things[0], label)


def test_largest_is_largest_to_the_eye_and_every_object_can_be_seen() -> None:
    data = Shapes("train", n=1500, seed=11, size=96)
    for index in range(len(data)):
        scene = data.scene(index)
        areas = []
        for thing in scene.things:
            only = [getattr(thing, group) for group in OBJECT_GROUPS]
            where = data.masks(index)[[data.concepts.index(name) for name in only]].all(axis=0)
            areas.append(where.sum() / 96**2)
            assert areas[-1] > 0.55 * np.pi * thing.radius**2, (index, thing)
        assert all(areas[0] > 1.6 * area for area in areas[1:]), index


def test_solid_fills_show_their_colour() -> None:
    data = Shapes("test", n=150, seed=4, size=160)
    seen = 0
    for index in range(len(data)):
        picture, masks = np.asarray(data.read(index)).astype(int), data.masks(index)
        for thing in data.scene(index).things:
            if thing.texture != "solid":
                continue
            names = (thing.shape, thing.colour, thing.texture, thing.size)
            where = masks[[data.concepts.index(name) for name in names]].all(axis=0)
            middle = np.median(picture[where], axis=0)
            assert np.abs(middle - PALETTE[thing.colour]).max() <= JITTER + 1
            seen += 1
    assert seen > 30


def test_objects_stand_out_from_their_background() -> None:
    data = Shapes("test", n=300, seed=5)
    for index in range(len(data)):
        picture, masks = np.asarray(data.read(index)).astype(float), data.masks(index)
        ground = picture[masks[-5:].any(axis=0)].mean(axis=0)
        for colour in {thing.colour for thing in data.scene(index).things}:
            there = picture[masks[data.concepts.index(colour)]]
            assert np.linalg.norm(there - ground, axis=1).mean() > 45, (index, colour)


def test_classes_are_balanced() -> None:
    for label, classes in (("shape", 8), ("colour", 8), ("texture", 5)):
        data = shapes_from_spec(f"shapes:train?label={label}")
        assert data.labels is not None
        counts = np.bincount(data.labels, minlength=classes)
        expected = 10_000 / classes
        assert np.all(np.abs(counts - expected) < 5 * expected**0.5)


def test_transform_is_applied() -> None:
    def half(image: Image.Image) -> tuple[int, int]:
        return image.reduce(2).size

    assert Shapes("test", n=3, size=40, transform=half)[2] == (20, 20)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("shapes", "shapes:train"),
        ("shapes:test", "shapes:test"),
        ("shapes?n=5", "shapes:train?n=5"),
        ("shapes:test?n=2000&size=64&seed=0&label=shape", "shapes:test"),
        ("shapes:test?label=colour&seed=7&n=3", "shapes:test?n=3&seed=7&label=colour"),
    ],
)
def test_specs(spec: str, name: str) -> None:
    data = shapes_from_spec(spec)
    assert data.name == name
    assert shapes_from_spec(data.name).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape:test", "starts with 'shape', not with 'shapes'"),
        ("shapes:tset", "no split 'tset'; did you mean 'test'"),
        ("shapes:", "no split ''"),
        ("shapes:test?", "unknown option ''"),
        ("shapes:test?sise=3", "unknown option 'sise'; did you mean 'size'"),
        ("shapes?size", "option 'size' has no value"),
        ("shapes?size=", "option 'size' has no value"),
        ("shapes?n=ten", "option 'n' needs a whole number, not 'ten'"),
        ("shapes?n=1.5", "needs a whole number"),
        ("shapes?n=²", "needs a whole number"),
        ("shapes?n=--1", "needs a whole number"),
        (f"shapes?n={'9' * 5000}", "needs a whole number"),
        ("shapes?n=0", "'n' between 1 and 9999999, not 0"),
        ("shapes?size=8", "'size' between 16 and 2048, not 8"),
        ("shapes?seed=-1", "'seed' between 0 and"),
        ("shapes?n=1&n=2", "option 'n' is given twice"),
        ("shapes?label=color", "no label 'color'; did you mean 'colour'"),
    ],
)
def test_specs_that_do_not_read(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        shapes_from_spec(spec)


def test_options_are_checked_without_a_spec() -> None:
    with pytest.raises(SpecError, match="whole number for 'n', not True"):
        Shapes("test", n=True)
    with pytest.raises(SpecError, match=r"whole number for 'size', not 64\.0"):
        Shapes("test", size=64.0)  # type: ignore[arg-type]


def test_read_in_order_memory_does_not_grow() -> None:
    data = Shapes("test", n=5 * 512, size=16)
    scenes = [data.scene(i) for i in range(0, len(data), 100)]
    assert len(data._tables) == 1
    back = [data.scene(i) for i in reversed(range(0, len(data), 100))]
    assert len(data._tables) == 5  # out of order all are kept: each is asked for again
    assert list(map(repr, back)) == list(map(repr, reversed(scenes)))
