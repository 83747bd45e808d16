"""Phrases are true of what they are drawn from, and say what the shapes vocabulary says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polysem.data.captions import (
    GROUPS,
    SYNONYMS,
    TEMPLATES,
    phrases_about,
    true_of,
    vocabulary,
    words,
)
from polysem.data.scenes import CONCEPTS, Scene
from polysem.data.shapes import Shapes
from polysem.describe import describe
from polysem.describe.vocabulary import load_vocabulary

DATA = Shapes("test", n=60)


def _true_of_scene(phrase: list[int], scene: Scene) -> bool:
    """Say whether a phrase is true, from the scene and its names alone."""
    said = {
        group: CONCEPTS[group][index]
        for group, index in zip(GROUPS, phrase, strict=True)
        if index >= 0
    }
    ground = said.pop("background", scene.backdrop.kind)
    fits = [
        all(getattr(thing, group) == name for group, name in said.items()) for thing in scene.things
    ]
    return ground == scene.backdrop.kind and (any(fits) or not said)


def _truth(phrases: np.ndarray) -> np.ndarray:
    things, background = map(torch.from_numpy, DATA.objects())
    return true_of(torch.from_numpy(phrases), things, background).numpy()


@given(st.integers(0, 2**32))
def test_a_phrase_is_true_of_its_image_and_the_truth_is_that_of_the_scenes(seed: int) -> None:
    phrases = phrases_about(*DATA.objects(), np.random.default_rng(seed))
    truth = _truth(phrases)
    assert truth.diagonal().all()
    image, phrase = np.random.default_rng(seed).integers(0, len(DATA), (2, 20))
    for i, p in zip(image, phrase, strict=True):
        assert truth[i, p] == _true_of_scene(phrases[p].tolist(), DATA.scene(int(i)))
    assert (phrases >= 0).any(1).all()


def test_the_vocabulary_is_the_one_that_ships_and_its_truth_that_of_the_concepts() -> None:
    phrases = vocabulary()
    assert tuple(words(phrase) for phrase in phrases) == load_vocabulary("shapes").concepts
    single = (phrases >= 0).sum(1) == 1
    assert tuple(words(p) for p in phrases[single]) == DATA.concepts
    assert np.array_equal(_truth(phrases)[:, single], DATA.concept_matrix())


def test_every_concept_is_learned_from_and_all_that_is_said_means_what_it_should() -> None:
    rng = np.random.default_rng(0)
    data = Shapes("train", n=4000)
    phrases = np.concatenate([phrases_about(*data.objects(), rng) for _ in range(2)])
    said = {tuple(phrase) for phrase in phrases.tolist()}
    assert {tuple(phrase) for phrase in vocabulary().tolist()} <= said
    plain = {name: {name, *SYNONYMS.get(name, ())} for names in CONCEPTS.values() for name in names}
    for phrase in phrases[:300]:
        text = words(phrase, rng)
        for group, index in zip(GROUPS, phrase.tolist(), strict=True):
            if index >= 0:
                assert any(name in text for name in plain[CONCEPTS[group][index]]), text
    assert set(describe.TEMPLATES) <= set(TEMPLATES)


def test_what_is_out_of_view_is_not_true() -> None:
    gone = torch.full((1, 3, 4), -1)
    phrases = torch.from_numpy(vocabulary())
    assert not true_of(phrases, gone, torch.tensor([-1])).any()
    only = true_of(phrases, gone, torch.tensor([2]))[0].nonzero().flatten().tolist()
    assert [words(vocabulary()[number]) for number in only] == ["grainy background"]
    told = phrases_about(gone.numpy(), np.array([2]), np.random.default_rng(0))
    assert words(told[0]) == "grainy background"


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ([0, 0, -1, -1, -1], "red circle"),
        ([3, 4, 1, 2, 1], "large cyan striped star on a wavy background"),
        ([-1, -1, -1, 0, -1], "small"),
    ],
)
def test_words(phrase: list[int], text: str) -> None:
    assert words(np.array(phrase)) == text
