"""What the benchmark of names rests on: an encoder without error, fair pairs, chance."""

from __future__ import annotations

import math

import pytest
import torch

from polysem.cli.bench.names import _chance
from polysem.cli.bench.planted_names import _apart, _neurons, _sets, ideal_texts


def test_words_of_the_ideal_encoder_are_what_they_name() -> None:
    concepts = ("circle", "red", "wavy background")
    words = ["red", "red circle", "wavy background", "background", "green circle"]
    texts = ideal_texts(words, concepts)
    red, circle, wavy = torch.eye(3)
    expected = torch.stack([red[[1, 0, 2]], (red + circle) / 2**0.5, wavy, 0 * red, 0 * red])
    torch.testing.assert_close(texts[:, :3], expected)
    torch.testing.assert_close(torch.linalg.vector_norm(texts, dim=1), torch.ones(5))
    assert texts[3] @ texts[4] == 0  # different words are different, whatever they mean


def test_pairs_are_of_concepts_that_no_place_shows_at_once() -> None:
    sets = _sets(["red", "blue", "star", "wavy background"], 2)
    assert sets[:4] == [("red",), ("red",), ("blue",), ("blue",)]
    pairs = [concepts for concepts in sets if len(concepts) == 2]
    assert pairs == [
        ("red", "blue"), ("red", "wavy background"), ("blue", "wavy background"),
        ("star", "wavy background"),
    ]  # fmt: skip


def test_neurons_rest_elsewhere_and_fire_for_either_concept_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    shown = torch.zeros(200, 9, 2)
    shown[:100, 4, 0] = shown[100:, 5, 1] = 1  # half of the images show each, at one token
    tokens = 0.1 * torch.randn(200, 9, 6, generator=generator)
    tokens[..., :2] += shown
    tokens[100:, 5, 1] += 0.3  # the second is seen more strongly
    rows, bias = _neurons(tokens, shown, torch.eye(2, 6).double(), [(0,), (0, 1)], 0.0, 0)
    values = tokens.double() @ rows.T + bias
    assert values.median(1).values.median(0).values == pytest.approx([-2, -2], abs=0.2)
    strongest = values[..., 1].amax(1).topk(32).indices
    assert 10 <= (strongest < 100).sum() <= 22
    assert values[:100, 4, 0].mean() > 1
    assert values[100:, 5, 0].mean() < -1


def test_what_sets_apart_is_the_divergence_of_shares() -> None:
    share, base = torch.tensor([0.5, 0.25, 1.0]), torch.tensor([0.25, 0.5, 0.125])
    found = _apart(share, base)
    assert float(found[0]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), 1e-4)
    assert float(found[1]) == 0
    assert float(found[2]) == pytest.approx(math.log(8), 1e-4)


def test_chance_is_of_different_names_drawn_at_random() -> None:
    assert _chance(1, 1, 157) == pytest.approx(1 / 157)
    assert _chance(3, 2, 10) == pytest.approx(3 / 45)
    assert _chance(1, 2, 10) == 0
