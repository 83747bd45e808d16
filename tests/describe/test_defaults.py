"""Which CLIP a run gets, and that the one which ships knows what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from sklearn.metrics import roc_auc_score

from polysem.data.captions import true_of, vocabulary, words
from polysem.data.shapes import Shapes
from polysem.data.shipped import shipped_file
from polysem.describe.defaults import (
    CLIP_OF_PHOTOGRAPHS,
    default_clip,
    default_vocabulary,
    misfit,
)
from polysem.describe.texts import TEMPLATES, embed_concepts
from polysem.describe.vocabulary import load_vocabulary
from polysem.models.clip import Clip, load_clip
from polysem.models.encoder import image_encoder


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(default_clip("shapes:test"))


@pytest.mark.parametrize("data", ["shapes", "shapes:test", "shapes:test?n=60&size=64"])
def test_drawn_images_get_the_clip_that_ships(data: str) -> None:
    assert Path(default_clip(data)) == shipped_file("models", "shapes_clip")
    assert default_vocabulary(data) == "shapes"


@pytest.mark.parametrize("data", ["cifar10:test", "photos/shapes", "hf:shapes/x", "a.parquet"])
def test_all_others_get_one_that_open_clip_has(data: str) -> None:
    assert default_clip(data) == CLIP_OF_PHOTOGRAPHS
    name, _, tag = CLIP_OF_PHOTOGRAPHS.partition(":")
    assert tag in open_clip.list_pretrained_tags_by_model(name)
    assert default_vocabulary(data) == "common"


def test_the_small_one_never_passes_for_one_that_knows_photographs(clip: Clip) -> None:
    assert misfit(clip, "shapes:test?n=60") is None
    told = misfit(clip, "cifar10:test")
    assert told is not None
    assert "knows nothing of cifar10:test" in told
    assert CLIP_OF_PHOTOGRAPHS in told


def test_what_ships_is_small() -> None:
    folder = shipped_file("models", "shapes_clip")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6


def test_it_knows_every_concept_of_drawn_images(clip: Clip) -> None:
    data = Shapes("test", n=256, seed=3)
    encoder = image_encoder(clip)
    pixels = torch.stack([clip.transform(data.read(number)) for number in range(len(data))])
    images = torch.cat([encoder(part) for part in pixels.split(64)])
    concepts = load_vocabulary("shapes").concepts
    texts = embed_concepts(clip, concepts, TEMPLATES)
    things, background = map(torch.from_numpy, data.objects())
    phrases = torch.from_numpy(vocabulary())
    assert tuple(words(phrase) for phrase in vocabulary()) == concepts
    truth = true_of(phrases, things, background).numpy()
    varies = truth.any(0)
    auroc = roc_auc_score(truth[:, varies], (images @ texts.T).numpy()[:, varies], average=None)
    assert np.median(auroc) > 0.95
    assert np.quantile(auroc, 0.1) > 0.9
